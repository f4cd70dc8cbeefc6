"""Regions of tensors: intersections, tilings, filling in place. Shards of models: ``test_sharding``."""

from __future__ import annotations

import math
import re
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fake_ranks import WORLD, as_rank
from hypothesis import given, settings
from hypothesis import strategies as st
from region_splits import Dims, Split, two_splits
from torch import nn
from torch.distributed.tensor import DTensor, Shard

from moekit.errors import MoekitError
from moekit.moe_layer import MoELayer
from moekit.parallel.mesh import world_mesh
from moekit.shards import (
    TensorShard,
    fill_shards,
    intersection,
    local_shard,
    optimizer_state_shards,
    parameter_shards,
    slices_of,
    tiling_error,
)
from moekit.spec.kinds import MoE
from moekit_dispatchers.grouped import Grouped
from moekit_experts.glu import Glu
from moekit_routers.topk import TopK


def sharded(*shape: int) -> nn.Parameter:
    """Zeros, of which each rank has an equal number of rows."""
    rows = torch.zeros(shape[0] // WORLD, *shape[1:])
    return nn.Parameter(DTensor.from_local(rows, world_mesh("cpu"), [Shard(0)], run_check=False))


@settings(max_examples=150, deadline=None)
@given(two_splits(), st.data())
def test_a_missing_or_repeated_region_is_a_tiling_error(shapes: tuple[Dims, Split, Split], data: st.DataObject) -> None:
    shape, split, _ = shapes
    assert tiling_error(shape, [region for region in split if math.prod(region[1])]) == ""
    if math.prod(shape):
        i = data.draw(st.integers(0, len(split) - 1))
        assert "the shards hold" in tiling_error(shape, split[:i] + split[i + 1 :])
        assert "two shards hold" in tiling_error(shape, [*split, split[i]])


@settings(max_examples=100, deadline=None)
@given(two_splits())
def test_an_intersection_holds_the_elements_of_both_regions(shapes: tuple[Dims, Split, Split]) -> None:
    shape, one, other = shapes
    for a, b in ((a, b) for a in one for b in other):
        marks = torch.zeros(shape, dtype=torch.int64)
        marks[slices_of(*a)] += 1
        marks[slices_of(*b)] += 1
        common = intersection(*a, *b)
        assert int((marks == 2).sum()) == (0 if common is None else math.prod(common[1]))
        assert common is None or bool((marks[slices_of(*common)] == 2).all())


@pytest.mark.parametrize(("offset", "sizes"), [((3, 0), (2, 3)), ((-1, 0), (2, 3)), ((0,), (2,))])
def test_a_shard_beyond_its_tensor_is_rejected(offset: Dims, sizes: Dims) -> None:
    with pytest.raises(ValueError, match=r"w: a shard of \(2.*\) at \(.*\) exceeds \(4, 3\)"):
        TensorShard("w", (4, 3), offset, torch.zeros(sizes))


def test_shards_are_filled_in_place_and_empty_ones_are_not_read() -> None:
    target = torch.zeros(4, 3)
    shards = [TensorShard("w", (4, 3), (2, 0), target[2:]), TensorShard("v", (9,), (0,), torch.zeros(0))]
    read: list[str] = []

    def offset(name: str, start: Dims, sizes: Dims) -> torch.Tensor:
        read.append(name)
        return torch.full(sizes, float(start[0]))

    fill_shards(shards, offset)
    assert target.tolist() == [[0.0] * 3] * 2 + [[2.0] * 3] * 2 and read == ["w"]


def test_stacked_weights_of_some_experts_are_rows_of_all_experts() -> None:
    held = torch.zeros(2, 5)
    shard = local_shard("w", held, expert_rows=(4, 8))
    assert (shard.global_shape, shard.offset, shard.sizes) == ((8, 5), (4, 0), (2, 5))
    assert shard.tensor is held
    whole = local_shard("w", held)
    assert (whole.global_shape, whole.offset, whole.tensor is held) == ((2, 5), (0, 0), True)


def test_optimizer_state_with_a_row_for_each_expert_is_sharded_as_the_experts_are() -> None:
    """Also if it has another shape than the weights; other state is whole on every rank."""
    layer = MoELayer.from_spec(MoE(router=TopK(top_k=1), experts=Glu(count=2, hidden=6), dispatcher=Grouped()), dim=5)
    assert layer.spec is not None
    layer.spec = replace(layer.spec, experts=Glu(count=8, hidden=6))
    layer.dispatcher.local_experts = range(4, 6)
    (name, p), *_ = ((n, p) for n, p in layer.named_parameters() if n.startswith("experts."))
    state = {p: {"moment": torch.zeros_like(p), "scale": torch.zeros(2), "step": torch.tensor(1.0)}}
    found = optimizer_state_shards(layer, SimpleNamespace(state=state))[name]
    assert {key: (shard.global_shape, shard.offset) for key, shard in found.items()} == {
        "moment": ((8, *p.shape[1:]), (4, 0, 0)),
        "scale": ((8,), (4,)),
        "step": ((), ()),
    }


@pytest.mark.parametrize(
    ("shape", "found"),
    [((), ""), ((1,), ""), ((2, 3), "a plain tensor "), ((8, 3), "a plain tensor "), ((8,), "a plain tensor ")],
)
def test_plain_state_of_a_sharded_parameter_is_rejected_unless_it_is_one_number(shape: Dims, found: str) -> None:
    """Rank 0's part was saved, and given to every rank."""
    with as_rank(1):
        p = sharded(8, 3)
        module = nn.ParameterDict({"w": p})
        state = {p: {"moment": torch.zeros_like(p), "own": torch.zeros(shape)}}
        error = f"^the optimizer's state 'own' of w is {found}{re.escape(str([*shape]))}, and the parameter .8, 3. is "
        with pytest.raises(MoekitError, match=error) if found else nullcontext():
            shards = optimizer_state_shards(module, SimpleNamespace(state=state))["w"]
            assert [(each.global_shape, each.offset) for each in shards.values()] == [
                ((8, 3), (2, 0)),
                (shape, (0,) * len(shape)),
            ]
        state[p]["own"] = sharded(8, 2)
        with pytest.raises(MoekitError, match=r"'own' of w is \[8, 2\], and"):
            optimizer_state_shards(module, SimpleNamespace(state=state))


def test_distributed_experts_of_a_layer_without_a_spec_are_an_error() -> None:
    layer = MoELayer.from_spec(MoE(router=TopK(top_k=1), experts=Glu(count=4, hidden=6), dispatcher=Grouped()), dim=5)
    layer.dispatcher.local_experts, layer.spec = range(4), None
    with pytest.raises(MoekitError, match="experts are distributed over ranks must be built from a spec"):
        parameter_shards(layer)
