"""What ``test_attach`` trains, in one process or, as a script, in two: a module of one's own with ``MoECallback``."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import moekit
from moekit.training.run.prepare import quiet
from moekit_lightning import MoECallback


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(2, 8)
        self.moe = moekit.layer(
            dim=8,
            router={"use": "topk", "top_k": 2, "score": "sigmoid", "renormalize": True},
            experts={"use": "glu", "count": 4, "hidden": 8},
            balancers={
                "bias": {"use": "sign_bias", "rate": 0.03},
                "sequence": {"use": "sequence_balance", "weight": 0.5},
            },
        )
        self.out = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.moe(self.inp(x))[0])
        return y


class Own(L.LightningModule):
    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.net = Net()
        self.checkpointed = checkpointed

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, target = batch
        y = checkpoint(self.net, x, use_reentrant=False) if self.checkpointed else self.net(x)
        return nn.functional.mse_loss(y, target) + MoECallback.loss(self)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def cases(number: int, batch: int, rank: int = 0, world: int = 1) -> DataLoader[Any]:
    """Sequences of four points. Each rank gets its part of every batch of all ranks."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(number, 4, 2, generator=generator, dtype=torch.float64)
    dataset = TensorDataset(x, x.prod(-1, keepdim=True))
    order = torch.arange(number).view(-1, world, batch)[:, rank].reshape(-1).tolist()
    return DataLoader(torch.utils.data.Subset(dataset, order), batch_size=batch)


def fit(module: L.LightningModule, batches: Any, accumulate: int, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    """One epoch in fp64, without output."""
    trainer = L.Trainer(
        **{  # type: ignore[arg-type]
            "max_epochs": 1, "accumulate_grad_batches": accumulate, "precision": "64-true", "callbacks": [*callbacks],
            "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
            "enable_model_summary": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1,
            "use_distributed_sampler": False, **options,
        }
    )  # fmt: skip
    loader = DataLoader(batches, batch_size=None) if isinstance(batches, list) else batches
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("default", ".*balance losses")
        trainer.fit(module, loader)
    return trainer


class Sharded(Own):
    def configure_model(self) -> None:
        if not isinstance(self.net, FSDPModule):
            for part in (self.net.moe, self.net):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])  # type: ignore[index]


def main(folder: str, strategy: str) -> None:
    """Half of every batch on each of two ranks."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    module, counted, options = Own(), MoECallback(), {"strategy": strategy}
    if strategy == "fsdp2":
        two = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        module, options = Sharded().double(), {"strategy": two, "precision": "32-true"}  # that is: as it is
    trainer = fit(module, cases(40, 4, rank, 2), 1, counted, devices=2, **options)
    assert trainer.world_size == 2 and counted.step_load is not None
    state = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in module.state_dict().items()}
    logged = float(trainer.callback_metrics["train/max_violation"])
    found = {"state": state, "load": dict(counted.step_load.load_E), "logged": logged}
    torch.save(found, Path(folder) / str(rank))


if __name__ == "__main__":
    main(*sys.argv[1:])
