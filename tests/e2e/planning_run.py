"""What ``test_planning`` runs in every process: a step of a small recipe in some layouts, and what each rank holds."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist
from sharded_run import SMALL, Micros
from torch import Tensor

from moekit.parallel.sharding import local
from moekit.spec import load
from moekit.training import LitMoE
from moekit.training.folder import RunFolder
from moekit.training.trainer import make_trainer, quiet


def size(tensors: list[Tensor]) -> int:
    return sum(local(t).numel() * t.element_size() for t in tensors)


def held(ep: int, optimizer: str, rank: int, world: int) -> dict[str, int]:
    """Bytes of this rank's weights and gradients, and of its optimizer's state."""
    options = [
        *SMALL["deepseek_v3"], "trainer.max_steps=1", "trainer.accelerator=cpu", f"trainer.devices={world}",
        f"trainer.strategy={{use: sharded, ep: {ep}}}", "trainer.limit_val_batches=0", "data=null",
        "trainer.enable_checkpointing=false", "trainer.enable_progress_bar=false", f"optimizer={{use: {optimizer}}}",
    ]  # fmt: skip
    recipe = load("deepseek_v3", options)
    module = LitMoE(recipe)
    seen: dict[str, int] = {}
    clip = module.configure_gradient_clipping

    def noted(*args: object, **kwargs: object) -> None:
        seen["gradients"] = size([p.grad for p in module.model.parameters() if p.grad is not None])
        clip(*args, **kwargs)  # type: ignore[arg-type]

    module.configure_gradient_clipping = noted  # type: ignore[method-assign]
    trainer = make_trainer(recipe, RunFolder(Path("nowhere")))
    trainer.fit(module, Micros(recipe, 1, 1, rank, world))
    state = [v for kept in trainer.optimizers[0].state.values() for v in kept.values() if isinstance(v, Tensor)]
    buffers = sum(b.numel() * b.element_size() for b in module.model.buffers())
    return {**seen, "parameters": size(list(module.model.parameters())) + buffers, "optimizer": size(state)}


def main(eps: str, out: str) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    rows = []
    with quiet():
        for word in eps.split(","):
            ep, _, optimizer = word.partition(":")
            every: list[dict[str, int] | None] = [None] * world
            mine = held(int(ep), optimizer, rank, world)
            dist.all_gather_object(every, mine)
            rows.append({"ep": int(ep), "optimizer": optimizer, "ranks": every})
    if rank == 0:
        Path(out).write_text(json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
