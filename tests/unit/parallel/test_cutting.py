"""How a model is cut up: what is gathered at once, in which dtypes, in equal parts; gradients are sums over ranks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fake_ranks import WORLD, as_rank
from test_sharding import OPTIONS, model_of
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from moekit import load
from moekit.contracts import Model
from moekit.parallel.sharding import shard, shards_of
from moekit.parallel.strategy import laid_out
from moekit.registry import build
from moekit.spec.sharding import Sharded

BLOCKS = {"", "blocks.0", "blocks.1"}
LAYER = {"blocks.1.ffn", "blocks.1.ffn.router", "blocks.1.ffn.shared"}


@pytest.mark.parametrize(("ep", "units"), [(1, BLOCKS), (2, BLOCKS | LAYER), (4, BLOCKS)])
def test_what_is_gathered_at_once(ep: int, units: set[str]) -> None:
    """Block by block, not the whole model; a layer whose bank is cut over fewer ranks than the rest, by itself."""
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float64)
    with as_rank(1):
        model = model_of(ep)
        shard(model, ep, "cpu", policy)
        # torch offers no way to ask
        groups: dict[str, Any] = {
            name: module._get_fsdp_state()._fsdp_param_group  # type: ignore[no-untyped-call]
            for name, module in model.named_modules()
            if isinstance(module, FSDPModule)
        }
    assert groups.keys() == units
    for name, group in groups.items():
        assert (group.gradient_divide_factor, group.force_sum_reduction_for_comms) == (1.0, True), name
        assert group.mp_policy == policy, name


@pytest.mark.parametrize("ep", [1, 2])
def test_experts_that_do_not_go_round_are_cut_across(ep: int) -> None:
    """Six over four ranks, or three over two, would leave some with more: each has a part of every expert."""
    changes = ["model.moe.experts.count=6", "model.moe.router.groups=2", "model.moe.router.top_groups=1"]
    with as_rank(3):
        model: Model = build(laid_out(load("deepseek_v3", [*OPTIONS, *changes]), Sharded(ep=ep)).model)
        shard(model, ep, "cpu")
        held = {name: box for name, box in shards_of(model).items() if ".experts." in name}
    assert held
    for name, box in held.items():
        assert box.tensor.numel() * WORLD == math.prod(box.global_shape), name
