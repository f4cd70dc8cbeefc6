"""Shards of weights, and the optimizer's state, against those of four ranks that send nothing (``fake_ranks``)."""

from __future__ import annotations

from math import prod

import pytest
import torch
from fake_ranks import WORLD, as_rank
from torch import Tensor

from moekit import load
from moekit.errors import MoekitError
from moekit.parallel.mesh import shard_dim
from moekit.params import build_on_meta
from moekit.registry import build
from moekit.shards import local
from moekit.spec.recipe import Recipe
from moekit.training.optim import optimizer_of
from moekit_lightning.sharded import Sharded
from moekit_lightning.sharded.fsdp import shard
from moekit_lightning.sharded.module import with_expert_parallel
from moekit_plan.weight_bytes import Layout, gathered_numbers, optimizer_bytes, optimizer_state, weights_of

ST_MOE = (
    "model.dim=18", "model.depth=1", "model.ffn.hidden=24", "model.vocab=48", "data=null",
    "model.attention={use: relative, heads: 2, head_dim: 9}", "model.cross={heads: 2, head_dim: 9}",
    "model.moe.at={every: 1}", "model.moe.experts.count=4", "model.moe.experts.hidden=20",
    "optimizer=null", "optimizer={use: adafactor}",
)  # fmt: skip


def state_of_rank(recipe: Recipe, ep: int, rank: int) -> int:
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
def test_bytes_of_adafactors_state_are_exact(ep: int) -> None:
    """A scale per expert, uneven shards, matrices sharded along either dimension. Sums along it are whole."""
    recipe = load("st_moe", ST_MOE)
    assert recipe.optimizer is not None
    model = build_on_meta(recipe.model)
    weights = weights_of(model)
    planned = optimizer_bytes(
        weights, optimizer_state(recipe.optimizer, model, torch.float32), Layout(devices=WORLD, ep=ep)
    )
    assert planned == state_of_rank(recipe, ep, 0) >= state_of_rank(recipe, ep, WORLD - 1)


def test_parameters_are_cut_along_a_dimension_with_rows_for_every_rank() -> None:
    """A dense layer is a bank of one expert: cut along its first dimension, it would be on one device."""
    assert shard_dim((1, 864, 128), 4) == 1 and shard_dim((1, 7, 5), 4) == 0
    assert (
        shard_dim((256, 4096, 7168), 32) == 0
        and shard_dim((4, 4096, 7168), 32) == 1
        and shard_dim((4, 7168, 2048), 2048) == 2
    )
    assert shard_dim((129281, 7168), 2048) == 0 and shard_dim((), 4) == 0


@pytest.mark.parametrize("ep", [1, 2, 4, 8])
def test_shards_add_up_to_the_whole_where_they_are_even(ep: int) -> None:
    layout = Layout(devices=8, ep=ep)
    for weight in weights_of(build_on_meta(load("deepseek_v3").model)):
        whole, part = prod(weight.shape), prod(weight.shard_shape(layout))
        assert prod(weight.local_shape(layout)) * (ep if weight.experts else 1) == whole
        assert part * 8 == whole or (weight.shape[0] % 8 and not weight.experts)
    _, block, blocks = gathered_numbers(weights_of(build_on_meta(load("deepseek_v3").model)), layout)
    assert 0 < block < blocks


def test_experts_of_a_single_rank_are_not_gathered() -> None:
    weights = weights_of(build_on_meta(load("deepseek_v3").model))
    experts = [w for w in weights if w.experts]
    assert gathered_numbers(experts, Layout(devices=4, ep=4)) == (0, 0, 0)
    assert gathered_numbers(experts, Layout(devices=8, ep=4))[2] == sum(prod(w.shape) for w in experts) // 4


def test_experts_without_stacked_weights_are_rejected() -> None:
    model = build_on_meta(load("deepseek_v3").model)
    layer = next(m for m in model.modules() if type(m).__name__ == "MoELayer")
    layer.experts = layer.experts.from_modules([torch.nn.Linear(3, 3) for _ in range(2)], 3)  # type: ignore[union-attr, operator]
    with pytest.raises(MoekitError, match="does not stack its experts' weights"):
        weights_of(model)
