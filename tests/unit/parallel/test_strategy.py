"""The strategy's own decisions, without other processes. What comes of them: ``tests/e2e/test_sharded``."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from moekit import load
from moekit.contracts import Model
from moekit.parallel.strategy import ShardedStrategy, laid_out, mixtures
from moekit.spec.sharding import Sharded
from moekit_dispatchers.expert_parallel import ExpertParallel
from moekit_dispatchers.grouped import Grouped


def test_ranks_share_experts_by_the_layouts_number_of_them() -> None:
    """Not over all ranks; and a recipe that deals its experts out itself is left as it is."""
    recipe = load("deepseek_v3", ["model.moe.dispatcher={use: grouped}"])
    assert {moe.dispatcher for moe in mixtures(laid_out(recipe, Sharded(ep=2)).model)} == {
        ExpertParallel(size=2, local=Grouped())
    }
    assert laid_out(recipe, Sharded(ep=1)) is recipe
    own = load("deepseek_v3", ["model.moe.dispatcher={use: expert_parallel, size: 4, local: {use: grouped}}"])
    assert {cast(Any, moe.dispatcher).size for moe in mixtures(laid_out(own, Sharded(ep=2)).model)} == {4}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_gradients_of_half_precision_are_added_up_in_fp32(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr("moekit.parallel.strategy.shard", lambda *args: given.append(args))
    strategy = ShardedStrategy(Sharded(ep=2))
    strategy.parallel_devices = [torch.device("cpu")]
    strategy.cluster_environment = cast(Any, SimpleNamespace(local_rank=lambda: 0))
    model = cast(Model, nn.Linear(2, 2).to(dtype))
    strategy.shard(model)
    ((cut, ep, device, policy),) = given
    assert (cut, ep, device) == (model, 2, "cpu")
    assert policy.reduce_dtype == (torch.float32 if dtype in (torch.bfloat16, torch.float16) else None)
    assert policy.param_dtype is None


def test_every_rank_samples_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock ``ModelParallelStrategy`` would deal samples out by its data parallel dimension."""
    strategy = ShardedStrategy(Sharded())
    monkeypatch.setattr(ShardedStrategy, "world_size", 4)
    monkeypatch.setattr(ShardedStrategy, "global_rank", 3)
    assert strategy.distributed_sampler_kwargs == {"num_replicas": 4, "rank": 3}


def test_one_waits_as_long_as_the_layout_says() -> None:
    assert ShardedStrategy(Sharded(timeout=7))._timeout == timedelta(seconds=7)
