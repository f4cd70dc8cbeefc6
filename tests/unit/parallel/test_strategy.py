"""The strategy's own decisions, without other processes. What comes of them: ``tests/e2e/test_sharded``."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from moekit import load
from moekit.checkpoints.reading import Handle
from moekit.checkpoints.writing import save_tree
from moekit.contracts import Model
from moekit.errors import CheckpointError, SpecError
from moekit.parallel.strategy import ShardedStrategy, check_layout, with_expert_parallel
from moekit.spec.kinds import MoE
from moekit.spec.replacing import find_all
from moekit.spec.sharding import Sharded
from moekit.training.callbacks.checkpoint import AtomicCheckpointIO
from moekit_dispatchers.expert_parallel import ExpertParallel
from moekit_dispatchers.grouped import Grouped


def test_ranks_share_experts_by_the_layouts_number_of_them() -> None:
    """Not over all ranks; and a recipe that deals its experts out itself is left as it is."""
    recipe = load("deepseek_v3", ["model.moe.dispatcher={use: grouped}"])
    assert {moe.dispatcher for moe in find_all(with_expert_parallel(recipe, Sharded(ep=2)).model, MoE)} == {
        ExpertParallel(size=2, local=Grouped())
    }
    assert with_expert_parallel(recipe, Sharded(ep=1)) is recipe
    own = load("deepseek_v3", ["model.moe.dispatcher={use: expert_parallel, size: 4, local: {use: grouped}}"])
    assert {
        cast(Any, moe.dispatcher).size for moe in find_all(with_expert_parallel(own, Sharded(ep=2)).model, MoE)
    } == {4}


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


def test_a_model_has_the_trainers_precision_before_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its dtype says how gradients are added up, and a parameter that is in shards is no longer to be exchanged."""
    seen: list[Any] = []
    monkeypatch.setattr(
        "moekit.parallel.strategy.shard", lambda model, *args: seen.append((model.weight.dtype, args[-1].reduce_dtype))
    )
    strategy = ShardedStrategy(Sharded())
    strategy.parallel_devices = [torch.device("cpu")]
    strategy.cluster_environment = cast(Any, SimpleNamespace(local_rank=lambda: 0))
    strategy.precision_plugin = HalfPrecision("bf16-true")
    strategy.shard(cast(Model, nn.Linear(2, 2)))
    assert seen == [(torch.bfloat16, torch.float32)]


def test_every_rank_samples_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock ``ModelParallelStrategy`` would deal samples out by its data parallel dimension."""
    strategy = ShardedStrategy(Sharded())
    monkeypatch.setattr(ShardedStrategy, "world_size", 4)
    monkeypatch.setattr(ShardedStrategy, "global_rank", 3)
    assert strategy.distributed_sampler_kwargs == {"num_replicas": 4, "rank": 3}


def sharded_strategy() -> ShardedStrategy:
    strategy = ShardedStrategy(Sharded())
    strategy.checkpoint_io = AtomicCheckpointIO()
    return strategy


def test_one_waits_as_long_as_the_layout_says() -> None:
    assert ShardedStrategy(Sharded(timeout=7))._timeout == timedelta(seconds=7)


def test_of_models_and_optimizers_slices_are_read_and_all_else_at_once(tmp_path: Path) -> None:
    """Whole, an optimizer's state alone would be twice a model in the memory of every rank."""
    tensor = torch.arange(6.0)
    states = [{"state": {"w": {"exp_avg": tensor}}}]
    save_tree({"state_dict": {"w": tensor}, "optimizer_states": states, "loops": ({"seen": tensor},)}, tmp_path / "c")
    found = sharded_strategy().load_checkpoint(tmp_path / "c")
    for handle in (found["state_dict"]["w"], found["optimizer_states"][0]["state"]["w"]["exp_avg"]):
        assert isinstance(handle, Handle) and handle.read((2,), (2,)).tolist() == [2, 3]
    assert torch.equal(found["loops"][0]["seen"], tensor)


@pytest.mark.parametrize(
    ("saved", "stray"),
    [
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, ""),
        ({"weight": torch.ones(2, 3)}, "bias"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2), "more": torch.ones(1)}, "more"),
        ({"weight": torch.ones(3, 3), "bias": torch.ones(2)}, "weight"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_and_fills_nothing(
    tmp_path: Path, saved: dict[str, Tensor], stray: str
) -> None:
    save_tree({"state_dict": saved}, tmp_path / "c")
    strategy, module = sharded_strategy(), nn.Linear(3, 2)
    strategy._lightning_module = cast(Any, module)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    checkpoint = strategy.load_checkpoint(tmp_path / "c")
    if stray:
        with pytest.raises(CheckpointError, match=f"the checkpoint does not fit the model: {stray}$"):
            strategy.load_model_state_dict(checkpoint)
    else:
        strategy.load_model_state_dict(checkpoint)
    expected = before if stray else saved
    assert all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())


def test_a_run_does_not_end_before_what_it_saves_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(ModelParallelStrategy, "teardown", lambda self: told.append("processes"))
    strategy = ShardedStrategy(Sharded())
    strategy.checkpoint_io = cast(Any, SimpleNamespace(teardown=lambda: told.append("written")))
    strategy.teardown()
    assert told == ["processes", "written"]


def test_a_layout_that_does_not_come_out_even_is_told_what_would() -> None:
    few = ["groups=1", "top_groups=1", "top_k=2"]
    recipe = load("deepseek_v3", ["model.moe.experts.count=6", *(f"model.moe.router.{option}" for option in few)])
    with pytest.raises(SpecError) as caught:
        check_layout(recipe, Sharded(ep=2), 1)
    (problem,) = caught.value.problems
    assert (problem.what, problem.expected) == ("ep=2 does not divide the 1 rank", "one of 1")
    assert problem.notes == ("trainer.devices says how many ranks there are on a machine; 1 when left out",)
    with pytest.raises(SpecError) as caught:
        check_layout(recipe, Sharded(ep=4), 4)
    (problem,) = caught.value.problems
    assert (problem.what, problem.expected) == ("ep=4 does not divide the 6 experts of a layer", "one of 1, 2, 3, 6")
    assert problem.notes == () and problem.at == "trainer.strategy.ep"
    check_layout(recipe, Sharded(ep=3), 6)
