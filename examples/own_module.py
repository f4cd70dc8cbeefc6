"""A mixture layer in your own model and LightningModule: no YAML; of moekit's training only ``BalanceStep``.

Eight experts learn a function that differs in each of eight uneven regions. The selection bias balances the load while
the loss falls. Run ``python examples/own_module.py`` (seconds on a laptop).
"""

from __future__ import annotations

import logging
import warnings

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import moekit
from moekit import LayerReport
from moekit.training import BalanceStep
from moekit.training.balance import max_violation

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

    def forward(self, x: Tensor) -> tuple[Tensor, LayerReport]:
        h = self.inp(x)
        y, report = self.moe(h)
        return self.out(h + y), report


class Module(L.LightningModule):
    """Your LightningModule. It calls ``observe`` after every forward pass, and ``step`` once per optimizer step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.balance = BalanceStep(self.net)
        self.history: list[tuple[float, float]] = []  # loss and MaxVio of each optimizer step
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, target = batch
        y, report = self.net(x)
        self.balance.observe({"moe": report})
        loss = F.mse_loss(y, target)
        self.losses.append(loss.item())
        return loss + report.loss()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        step = self.balance.step()  # moves the bias by the load of all micro-batches and ranks
        assert step is not None
        self.history.append((sum(self.losses) / len(self.losses), float(max_violation(step.load_E["moe"]))))
        self.losses.clear()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def cases(num: int) -> TensorDataset:
    """Points of the plane, denser on one side, and a target that follows another rule in each of eight regions."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, 2, generator=generator) * torch.tensor([2.0, 1.0]) + torch.tensor([1.0, 0.0])
    region = (torch.atan2(x[:, 1], x[:, 0]) / torch.pi * 4).floor().long() + 4
    slope = torch.randn(9, 2, generator=generator)
    return TensorDataset(x, (x * slope[region]).sum(1, keepdim=True).sin())


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    L.seed_everything(0, verbose=False)
    torch.set_num_threads(1)  # tiny matrices: more threads are slower
    module = Module()
    loader = DataLoader(cases(STEPS * ACCUMULATE * 64), batch_size=64, shuffle=True)
    trainer = L.Trainer(
        max_steps=STEPS,
        accumulate_grad_batches=ACCUMULATE,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    print("steps        loss   MaxVio (0 is an even load)")
    for first in range(0, STEPS, STEPS // 5):
        loss, vio = zip(*module.history[first : first + STEPS // 5], strict=True)
        print(f"{first:>4} to {first + STEPS // 5:>4}  {mean(loss):.3f}  {mean(vio):.2f}")
    (loss_0, vio_0), (loss_1, vio_1) = module.history[0], tuple(map(mean, zip(*module.history[-20:], strict=True)))
    assert len(module.history) == STEPS, "the balancers step once per optimizer step"
    assert loss_1 < 0.5 * loss_0 and vio_1 < 0.5 * vio_0, "loss and MaxVio should both halve at least"


if __name__ == "__main__":
    main()
