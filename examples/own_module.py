"""A mixture layer in your own model and LightningModule: no YAML, and one line of the Trainer for balancing.

Eight experts learn a function that differs in each of eight uneven regions. Look at MaxVio: the selection bias evens
the load out while the loss falls. Run ``python examples/own_module.py`` (seconds on a laptop).
"""

from __future__ import annotations

import logging
import warnings
from statistics import mean

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import moekit
from moekit_lightning import MoECallback

DIM, EXPERTS, STEPS, ACCUMULATE = 32, 8, 100, 4


class Net(nn.Module):
    """Your model: any module. The layer returns its output, and a report of loads and balance losses."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(2, DIM)
        self.moe = moekit.layer(
            dim=DIM,
            router={"use": "topk", "top_k": 2, "score": "sigmoid", "renormalize": True},
            experts={"use": "glu", "count": EXPERTS, "hidden": 16},
            balancers={"bias": {"use": "sign_bias", "rate": 1e-2}},
        )
        self.out = nn.Linear(DIM, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        y, _report = self.moe(h)
        prediction: Tensor = self.out(h + y)
        return prediction


class Module(L.LightningModule):
    """Your LightningModule, as it would be without a mixture, but for the balance loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, target = batch
        loss = F.mse_loss(self.net(x), target)
        self.log("loss", loss)
        return loss + MoECallback.loss(self)  # 0 here: a selection bias needs no loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class History(L.Callback):
    """Loss and MaxVio of each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: object) -> None:
        if trainer.global_step > len(self.steps):
            seen = trainer.callback_metrics
            self.steps.append((float(seen["loss"]), float(seen["train/max_violation"])))


def cases(num: int) -> TensorDataset:
    """Points of the plane, denser on one side, and a target that follows another rule in each of eight regions."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, 2, generator=generator) * torch.tensor([2.0, 1.0]) + torch.tensor([1.0, 0.0])
    region = (torch.atan2(x[:, 1], x[:, 0]) / torch.pi * 4).floor().long() + 4
    slope = torch.randn(9, 2, generator=generator)
    return TensorDataset(x, (x * slope[region]).sum(1, keepdim=True).sin())


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    L.seed_everything(0, verbose=False)
    torch.set_num_threads(1)  # tiny matrices: more threads are slower
    history = History()
    trainer = L.Trainer(
        max_steps=STEPS,
        accumulate_grad_batches=ACCUMULATE,
        callbacks=[MoECallback(), history],  # steps the bias once per optimizer step, by the load of all micro-batches
        accelerator="cpu",
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), DataLoader(cases(STEPS * ACCUMULATE * 64), batch_size=64, shuffle=True))
    print("steps        loss   MaxVio (0 is an even load)")
    for first in range(0, STEPS, STEPS // 5):
        loss, vio = zip(*history.steps[first : first + STEPS // 5], strict=True)
        print(f"{first:>4} to {first + STEPS // 5:>4}  {mean(loss):.3f}  {mean(vio):.2f}")
    (loss_0, vio_0), (loss_1, vio_1) = history.steps[0], tuple(map(mean, zip(*history.steps[-20:], strict=True)))
    assert len(history.steps) == STEPS, "the balancers step once per optimizer step"
    assert loss_1 < 0.5 * loss_0 and vio_1 < 0.5 * vio_0, "loss and MaxVio should both halve at least"


if __name__ == "__main__":
    main()
