"""Run by ``test_planning`` in every process: a step of a small recipe in each layout; records what each rank has and
sends.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sharded_run import SMALL, Micros
from torch import Tensor

from moekit.shards import local
from moekit.spec import load
from moekit.training import LitMoE
from moekit.training.run.folder import RunFolder
from moekit.training.run.prepare import make_trainer, quiet


def size(tensors: list[Tensor]) -> int:
    return sum(local(t).numel() * t.element_size() for t in tensors)


@contextmanager
def counted(ep: int, rank: int, seen: dict[str, int]) -> Iterator[None]:
    """Counts what this rank sends by all-to-all: bytes, messages, and rows (each has one tensor of expert numbers).

    And the bytes of the messages by which gradients of replicated weights are summed.
    """
    real, reduce = dist.all_to_all_single, dist.all_reduce

    def summing(message: Tensor, *args: Any, async_op: bool = False, **more: Any) -> Any:
        seen["summed"] += message.nbytes * async_op
        return reduce(message, *args, async_op=async_op, **more)

    def counting(
        out: Tensor, x: Tensor, gets: list[int] | None = None, sends: list[int] | None = None, **more: Any
    ) -> Any:
        stay = x.shape[0] // ep if sends is None else sends[rank % ep]
        rows = x.shape[0] - stay
        seen["sent"] += rows * x[:1].nbytes if rows else 0
        seen["messages"] += ep - 1
        seen["rows"] += rows * (x.dtype == torch.int32)
        return real(out, x, gets, sends, **more)

    dist.all_to_all_single, dist.all_reduce = counting, summing
    try:
        yield
    finally:
        dist.all_to_all_single, dist.all_reduce = real, reduce


def held(ep: int, optimizer: str, precision: str, dense: str, rank: int, world: int) -> dict[str, int]:
    """Bytes of this rank's weights, gradients and optimizer state, and what it sent."""
    options = [
        *SMALL["deepseek_v3"], "trainer.max_steps=1", "trainer.accelerator=cpu", f"trainer.devices={world}",
        f"trainer.strategy={{use: sharded, ep: {ep}, dense: {dense}}}", "trainer.limit_val_batches=0", "data=null",
        "trainer.enable_checkpointing=false", "trainer.enable_progress_bar=false", f"optimizer={{use: {optimizer}}}",
        f"trainer.precision={precision}",
    ]  # fmt: skip
    recipe = load("deepseek_v3", options)
    module = LitMoE(recipe)
    seen = {"sent": 0, "messages": 0, "rows": 0, "summed": 0}
    clip = module.configure_gradient_clipping

    def recording(*args: object, **kwargs: object) -> None:
        seen["gradients"] = size([p.grad for p in module.model.parameters() if p.grad is not None])
        clip(*args, **kwargs)  # type: ignore[arg-type]

    module.configure_gradient_clipping = recording  # type: ignore[method-assign]
    trainer = make_trainer(recipe, RunFolder(Path("nowhere")))
    with counted(ep, rank, seen):
        trainer.fit(module, Micros(recipe, 1, 1, rank, world))
    state = [v for kept in trainer.optimizers[0].state.values() for v in kept.values() if isinstance(v, Tensor)]
    buffers = sum(b.numel() * b.element_size() for b in module.model.buffers())
    return {**seen, "parameters": size(list(module.model.parameters())) + buffers, "optimizer": size(state)}


def main(layouts: str, out: str) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    rows = []
    with quiet():
        for layout in layouts.split(","):
            ep, *others = layout.split(":")
            every: list[dict[str, int] | None] = [None] * world
            mine = held(int(ep), *others, rank, world)
            dist.all_gather_object(every, mine)
            rows.append({"layout": layout, "ranks": every})
    if rank == 0:
        Path(out).write_text(json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
