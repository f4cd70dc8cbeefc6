"""A plan's bytes of an optimizer's state, against what ranks keep; four of them, sending nothing: ``fake_ranks.py``."""

from __future__ import annotations

import pytest
import torch
from fake_ranks import WORLD, as_rank
from torch import Tensor

from moekit import load
from moekit.parallel.sharding import shard
from moekit.parallel.strategy import with_expert_parallel
from moekit.params import build_on_meta
from moekit.planning.optimizer_bytes import state_kinds
from moekit.planning.weight_bytes import Layout, optimizer_bytes, weights_of
from moekit.registry import build
from moekit.shards.shard import local
from moekit.spec.recipe import Recipe
from moekit.spec.sharding import Sharded
from moekit.training.optim import optimizer_of

ST_MOE = (
    "model.dim=18", "model.depth=1", "model.ffn.hidden=24", "model.vocab=48", "data=null",
    "model.attention={use: relative, heads: 2, head_dim: 9}", "model.cross={heads: 2, head_dim: 9}",
    "model.moe.at={every: 1}", "model.moe.experts.count=4", "model.moe.experts.hidden=20",
    "optimizer=null", "optimizer={use: adafactor}",
)  # fmt: skip


def kept(recipe: Recipe, ep: int, rank: int) -> int:
    """Bytes of a rank's state after a step."""
    with as_rank(rank):
        model = build(with_expert_parallel(recipe, Sharded(ep=ep)).model)
        shard(model, ep, "cpu")
        optimizer = optimizer_of(recipe, model, 10)["optimizer"]
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    state = [local(v) for each in optimizer.state.values() for v in each.values() if isinstance(v, Tensor)]
    return sum(v.numel() * v.element_size() for v in state)


@pytest.mark.parametrize("ep", [1, 2, 4])
def test_adafactor_to_the_byte(ep: int) -> None:
    """A scale per expert, rows that do not come out even, matrices cut either way: sums along a cut are whole."""
    recipe = load("st_moe", ST_MOE)
    assert recipe.optimizer is not None
    model = build_on_meta(recipe.model)
    weights = weights_of(model)
    planned = optimizer_bytes(
        weights, state_kinds(recipe.optimizer, model, torch.float32), Layout(devices=WORLD, ep=ep)
    )
    assert planned == kept(recipe, ep, 0) >= kept(recipe, ep, WORLD - 1)
