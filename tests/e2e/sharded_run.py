"""Run in every rank by ``test_sharded``: tiny recipes in one layout after another, compared with one process.

Micro-batch m of a step is the same in every layout: one, two or three sequences, padded unequally; one micro-batch is
all padding. One process accumulates them all.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._dynamo.utils import counters

from moekit import Batch, Source
from moekit.shards import TensorShard, gather, local, parameter_shards, state_dict_shards
from moekit.spec import load
from moekit.spec.recipe import Recipe
from moekit.training import LitMoE
from moekit.training.run.folder import RunFolder
from moekit.training.run.prepare import make_trainer, quiet

VOCAB = 48
PAIRS = (
    "model.dim=16", "model.ffn.hidden=24", "model.vocab=48", "model.attention={use: relative, heads: 2, head_dim: 8}",
    "model.cross={heads: 2, head_dim: 8}", "model.moe.experts.count=8", "model.moe.experts.hidden=16",
)  # fmt: skip
SMALL = {
    "deepseek_v3": (
        "model.attention={use: mla, heads: 2, query_rank: 8, kv_rank: 8, nope_dim: 4, rope_dim: 4, value_dim: 4}",
        "model.dim=16", "model.depth=2", "model.ffn.hidden=24", "model.vocab=48", "model.moe.router.top_k=3",
        "model.moe.router.groups=4", "model.moe.router.top_groups=2", "model.moe.experts.count=8",
        "model.moe.experts.hidden=8", "model.moe.shared.hidden=8", "model.moe.balancers.sequence.weight=0.1",
    ),
    "switch": PAIRS,
    "st_moe": PAIRS,
    "gshard": (*PAIRS, "model.moe.dispatcher.factor=1.0", "evaluators=null"),
}  # fmt: skip


def batch_of(recipe: Recipe, step: int, micro: int, of: int, documents: bool = False) -> Batch:
    """Micro-batch number ``micro``, of ``of`` in a step; an eighth of the tokens may begin a document."""
    g = torch.Generator().manual_seed(1000 * step + micro)
    B, S = 1 + micro % 3, 7

    def sequences(length: int) -> tuple[Tensor, Tensor]:
        valid = torch.arange(length) < torch.randint(2, length + 1, (B, 1), generator=g)
        none = micro == (step + 1) % of and step % 2 == 1  # all padding
        return torch.randint(0, VOCAB, (B, length), generator=g), valid & (not none)

    tokens, valid = sequences(S)
    source = Source(*sequences(9)) if recipe.model.takes == "pairs" else None
    document = (tokens[:, :-1] < VOCAB / 8).cumsum(1) if documents else None
    return Batch(tokens[:, :-1], tokens[:, 1:], valid[:, 1:], document=document, source=source)


def joined(parts: list[Batch]) -> Batch:
    """Micro-batches as one."""
    assert all(part.valid is not None and part.source is None for part in parts)
    inputs, targets, valid = (torch.cat(tensors) for tensors in zip(*(part[:3] for part in parts), strict=True))
    return Batch(inputs, targets, valid)


class Micros:
    """This rank's micro-batches."""

    def __init__(
        self,
        recipe: Recipe,
        steps: int,
        accumulate: int,
        rank: int,
        world: int,
        together: int = 1,
        documents: bool = False,
    ) -> None:
        self.documents = documents
        self.recipe, self.steps, self.accumulate, self.rank, self.world = recipe, steps, accumulate, rank, world
        self.together = together  # so many as one batch, where one process stands for several

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        of = self.accumulate * self.world * self.together
        for step in range(self.steps):
            for i in range(self.accumulate):
                first = i * self.world * self.together + self.rank
                some = [batch_of(self.recipe, step, first + m, of, self.documents) for m in range(self.together)]
                yield some[0] if self.together == 1 else joined(some)


class Watched(LitMoE):
    """Keeps of every step: gathered gradients before clipping, their norm, the loss, load and drops."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.seen: dict[str, list[Any]] = {"gradients": [], "norm": [], "loss": [], "load": [], "dropped": []}

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        done = self._finished
        assert done is not None and done.load is not None
        shards = {}
        for (name, shard), p in zip(parameter_shards(self.model).items(), self.model.parameters(), strict=True):
            held = torch.zeros_like(shard.tensor) if p.grad is None else local(p.grad).clone()
            shards[name] = TensorShard(name, shard.global_shape, shard.offset, held)
        self.seen["gradients"].append(gather(shards))
        self.seen["norm"].append(torch.tensor(done.norm, dtype=torch.float64))
        self.seen["loss"].append(done.sums["objective"] / done.tokens)
        self.seen["load"].append(dict(done.load.load_E))
        self.seen["dropped"].append(dict(done.load.dropped))
        super().configure_gradient_clipping(*args, **kwargs)


def train(run: Mapping[str, Any], rank: int = 0, world: int = 1) -> dict[str, Any]:
    """All that is watched in a run, and its parameters and buffers at the end, gathered on rank 0."""
    options = [
        *SMALL[run["recipe"]], *run.get("options", ()), f"model.recompute={run.get('recompute', 'none')}",
        f"trainer.precision={run['precision']}", f"trainer.max_steps={run['steps']}", "trainer.accelerator=cpu",
        f"trainer.devices={world}", f"trainer.accumulate_grad_batches={run['accumulate']}",
        "trainer.gradient_clip_val=0.2", "trainer.limit_val_batches=0", "trainer.enable_checkpointing=false",
        "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1", "optimizer.lr=1e-2", "data=null",
    ]  # fmt: skip
    if world > 1:
        how = f"dense: {run.get('dense', 'shard')}, reduce: {run.get('reduce', 'micro_batch')}"
        sharded = f"{{use: sharded, ep: {run['ep']}, {how}}}"
        options.append(f"trainer.strategy={run.get('strategy', sharded)}")
    recipe = load(run["recipe"], options)
    module = Watched(recipe)
    trainer = make_trainer(recipe, RunFolder(Path("nowhere")))
    together = run.get("together", 1) if world == 1 else 1  # what ranks see in one pass, in one pass
    micros = Micros(recipe, run["steps"], run["accumulate"], rank, world, together, run.get("documents", False))
    trainer.fit(module, micros)
    return {**module.seen, "tensors": gather(state_dict_shards(module.model))}


def apart(found: Any, expected: Any) -> float:
    """The largest difference of two values, relative to the norm of the expected; tensors in lists and mappings."""
    if isinstance(expected, Mapping):
        assert found.keys() == expected.keys()
        return max((apart(found[key], expected[key]) for key in expected), default=0.0)
    if isinstance(expected, list):
        assert len(found) == len(expected)
        return max((apart(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)
    assert found.shape == expected.shape and found.dtype == expected.dtype, (found.shape, expected.shape)
    if not expected.is_floating_point():
        return float((found - expected).abs().max()) if expected.numel() else 0.0
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12)) if expected.numel() else 0.0


def main(plan: str, out: str) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    rows = []
    with quiet():
        for run in json.loads(Path(plan).read_text()):
            counters.clear()
            found = train(run, rank, world)
            if rank == 0:
                expected = torch.load(run["expected"], weights_only=True)
                graphs = counters["stats"]["unique_graphs"]  # that torch.compile made
                distances = {key: apart(found[key], expected[key]) for key in expected}
                rows.append({**run, "graphs": graphs, "apart": distances})
                Path(out).write_text(json.dumps(rows))
            dist.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
