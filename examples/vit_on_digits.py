"""A small Vision Transformer reads 1,797 handwritten digits; ``moekit.replace`` makes its feed-forward layers mixtures.

Look at the last table: which of the last layer's experts got the patches of which digit. The router is never given the
digit. Needs scikit-learn, which brings the digits. Run ``python examples/vit_on_digits.py`` (20 s on one core).
"""

from __future__ import annotations

import logging
import warnings

import lightning as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import moekit
from moekit_lightning import MoECallback

DIM, DEPTH, EXPERTS, EPOCHS = 32, 3, 8, 15


class ViT(nn.Module):
    """16 patches of 2 x 2 pixels; a Transformer of torch's own layers; the mean of its tokens names the digit."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, DIM, kernel_size=2, stride=2)
        self.position = nn.Parameter(0.02 * torch.randn(16, DIM))
        layer = nn.TransformerEncoderLayer(DIM, 4, 2 * DIM, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)
        self.head = nn.Linear(DIM, 10)

    def forward(self, image: Tensor) -> Tensor:
        token = self.patch(image).flatten(2).mT + self.position
        digit: Tensor = self.head(self.encoder(token).mean(1))
        return digit


class Classifier(L.LightningModule):
    """As it would be without mixtures, but for ``MoECallback.loss``."""

    def __init__(self, vit: ViT) -> None:
        super().__init__()
        self.vit = vit

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        image, digit = batch
        return F.cross_entropy(self.vit(image), digit) + MoECallback.loss(self)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        image, digit = batch
        self.log("accuracy", (self.vit(image).argmax(-1) == digit).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def digits() -> tuple[TensorDataset, TensorDataset]:
    """The digits for training, and every fifth to validate: images ``[1, 8, 8]`` from 0 to 1."""
    found = load_digits()
    image = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    digit = torch.tensor(found.target)
    held_out = torch.arange(len(image)) % 5 == 0
    return TensorDataset(image[~held_out], digit[~held_out]), TensorDataset(image[held_out], digit[held_out])


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    L.seed_everything(0, verbose=False)
    torch.set_num_threads(1)  # tiny matrices: more threads are slower
    vit = ViT()
    mixtures = moekit.replace(
        vit,
        nn.TransformerEncoderLayer,
        {
            "router": {"use": "topk", "top_k": 2, "score": "softmax"},
            "experts": {"use": "glu", "count": EXPERTS, "hidden": DIM},
            "balancers": {"load": {"use": "load_balance", "weight": 0.01}},
        },
    )
    print(f"mixtures in {', '.join(mixtures)}")
    train, validation = digits()
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        callbacks=[MoECallback()],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    module = Classifier(vit)
    trainer.fit(module, DataLoader(train, batch_size=64, shuffle=True), DataLoader(validation, batch_size=360))
    accuracy, uneven = (float(trainer.callback_metrics[name]) for name in ("accuracy", "train/max_violation"))
    print(f"accuracy on held-out digits {accuracy:.1%}; MaxVio of the last step {uneven:.2f} (0 is an even load)")

    # Which expert is the first choice of how many patches of each digit, in the last layer?
    last = list(mixtures.values())[-1]
    chosen: list[Tensor] = []
    hook = last.register_forward_hook(lambda layer, inputs, output: chosen.append(output[1].routing.expert_TK[:, 0]))
    image, digit = validation.tensors
    with torch.no_grad():
        vit.eval()(image)
    hook.remove()
    table = torch.zeros(10, EXPERTS).index_put_(
        (digit.repeat_interleave(16), chosen[0]), torch.ones(()), accumulate=True
    )
    share = table / table.sum(1, keepdim=True)
    print("\nshare of a digit's patches by expert (%)\ndigit " + "".join(f"{expert:5}" for expert in range(EXPERTS)))
    for number, row in enumerate(share):
        print(f"{number:5} " + "".join(f"{100 * part:5.0f}" for part in row))
    joint = table / table.sum()
    independent = joint.sum(1, keepdim=True) * joint.sum(0)
    bits = float((joint * (joint / independent).clamp(min=1e-12).log2()).sum())
    print(f"\ninformation of the expert about the digit: {bits:.2f} of 3.32 bits")
    assert accuracy > 0.9, "most held-out digits should be read"


if __name__ == "__main__":
    main()
