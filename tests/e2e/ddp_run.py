"""Run in every rank by ``test_training_ddp``: the same six batches, split over ranks or accumulated by one process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import torch

from moekit import Batch, Data, MoELayer
from moekit.spec import load
from moekit.training import LitMoE
from moekit.training.data import ValidationShard
from moekit.training.run.prepare import quiet

SIZES = (1, 3, 2, 4, 2, 1)  # of micro-batches, two a step
HELD_OUT = 3  # validation batches: two ranks get two and one


class Fixed:
    """Batch ``2 i + r`` is rank r's i-th; one process reads them all."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return len(SIZES) // self.world

    def __iter__(self) -> Iterator[Batch]:
        g = torch.Generator().manual_seed(3)
        for i, size in enumerate(SIZES):
            tokens = torch.randint(0, 256, (size, 7), generator=g)
            valid = torch.arange(6) < torch.randint(2, 7, (size, 1), generator=g)
            if i % self.world == self.rank:
                yield Batch(tokens[:, :-1], tokens[:, 1:], valid)


class HeldOut(Data):
    """Validation batches."""

    def prepare(self) -> None: ...

    def train_batch(self, generator: torch.Generator) -> Batch:
        raise NotImplementedError

    def validation_batches(self) -> Iterator[Batch]:
        g = torch.Generator().manual_seed(4)
        for _ in range(HELD_OUT):
            tokens = torch.randint(0, 256, (2, 7), generator=g)
            yield Batch(tokens[:, :-1], tokens[:, 1:])


def main(recipe: str, out: str, *overrides: str) -> None:
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    with quiet():
        module = LitMoE(load(recipe, list(overrides)))
        trainer = L.Trainer(
            accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", precision="64-true",
            max_epochs=1, accumulate_grad_batches=2 // world, gradient_clip_val=0.5, log_every_n_steps=1, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, Fixed(rank, world), ValidationShard(HeldOut(), rank, world))
        trainer.save_checkpoint(Path(out) / "whole.ckpt")  # every rank takes part
    layer = next(m for m in module.modules() if isinstance(m, MoELayer))
    assert module.step_load is not None
    (load_E,) = module.step_load.load_E.values()
    validation = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    saved = {"weights": module.state_dict(), "bias": layer.selection_bias(), "load": load_E}
    saved |= {"logged": module.logged, "validation": validation}
    torch.save(saved, Path(out) / f"rank{rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
