"""The strategy's own decisions, in one process. Sharded runs: ``tests/e2e/test_sharded``."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
import torch
import torch.distributed as dist
from fake_plugins import KINDS, module
from lightning.pytorch.plugins import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from moekit import load, registry
from moekit.checkpoints.reading import Handle
from moekit.checkpoints.writing import save_tree
from moekit.compat import timeout_of
from moekit.component import Component
from moekit.contracts import Model
from moekit.errors import CheckpointError, SpecError
from moekit.registry import Registry, temporary
from moekit.spec.kinds import DispatcherSpec, ExpertParallelSpec, MoE
from moekit.spec.replacing import find_all, replace_all
from moekit.training.callbacks.checkpoint import AtomicCheckpointIO
from moekit_dispatchers.expert_parallel import ExpertParallel
from moekit_dispatchers.grouped import Grouped
from moekit_lightning.sharded import Sharded
from moekit_lightning.sharded.module import ShardedStrategy, check_layout, with_expert_parallel


def dispatchers(ep: int, dispatcher: str) -> set[DispatcherSpec]:
    """Those of a recipe in which each mixture has this one, for expert groups of a size."""
    recipe = load("deepseek_v3", [f"model.moe.dispatcher={dispatcher}"])
    return {moe.dispatcher for moe in find_all(with_expert_parallel(recipe, Sharded(ep=ep)).model, MoE)}


@pytest.mark.parametrize("own", ["{use: grouped}", "{use: expert_parallel, local: {use: grouped}}"])
def test_dispatchers_are_wrapped_for_expert_groups_of_the_layouts_size(own: str) -> None:
    """One that is ``expert_parallel`` already gets the size: its default, all ranks, would train ``ep: 1`` wrong."""
    assert dispatchers(2, own) == {ExpertParallel(size=2, local=Grouped())}
    assert dispatchers(1, own) == {Grouped() if "local" not in own else ExpertParallel(size=1, local=Grouped())}
    recipe = load("deepseek_v3", ["model.moe.dispatcher={use: grouped}"])
    assert with_expert_parallel(recipe, Sharded(ep=1)) is recipe


@pytest.mark.parametrize(("ep", "size"), [(1, 2), (2, 1), (2, 4), (4, 2)])
def test_a_dispatcher_of_another_size_than_the_layouts_is_rejected(ep: int, size: int) -> None:
    """Ranks with different experts were sharded as replicas; or replicas drifted apart, and one was saved."""
    own = f"{{use: expert_parallel, size: {size}, local: {{use: grouped}}}}"
    assert dispatchers(size, own) == {ExpertParallel(size=size, local=Grouped())}
    expected = f"ExpertParallel has size={size}, .* ep={ep}\n  at trainer.strategy.ep\n  expected ep={size}, or"
    with pytest.raises(SpecError, match=expected):
        dispatchers(ep, own)
    with pytest.raises(SpecError, match=expected):
        check_layout(load("deepseek_v3", [f"model.moe.dispatcher={own}"]), Sharded(ep=ep), 4)


class Relay(ExpertParallelSpec):
    """A second dispatcher that distributes experts over ranks."""

    dropless: ClassVar[bool] = True


RELAY = Component(name="relay", spec=Relay, target="acme.relay:Relay", summary="another")


def test_which_of_two_expert_parallel_dispatchers_is_meant_must_be_said() -> None:
    recipe = load("deepseek_v3", ["model.moe.dispatcher={use: grouped}"])
    with temporary(module("acme", components=[RELAY])):
        with pytest.raises(SpecError, match=r"^2 dispatchers .*: dispatchers/expert_parallel, acme/relay\n"):
            with_expert_parallel(recipe, Sharded(ep=2))
        own = load("deepseek_v3", ["model.moe.dispatcher={use: relay, local: {use: grouped}}"])
        assert with_expert_parallel(own, Sharded(ep=2)) == replace_all(own, Relay, lambda each: replace(each, size=2))


def test_without_an_expert_parallel_dispatcher_ep_must_be_1(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load("deepseek_v3", ["model.moe.dispatcher={use: grouped}"])
    monkeypatch.setattr(registry, "_current", Registry([KINDS]))
    with pytest.raises(SpecError, match=r"^no dispatchers distribute .*\n  at trainer.strategy.ep\n  expected 1\n"):
        with_expert_parallel(recipe, Sharded(ep=2))


def test_a_dispatcher_that_cannot_be_imported_does_not_stop_a_run_without_it() -> None:
    recipe = load("deepseek_v3", ["model.moe.dispatcher={use: grouped}"])
    gone = Component(kind="dispatcher", name="gone", spec="acme.gone:Gone", target="acme.gone:Gone", summary="gone")
    with temporary(module("acme", components=[gone])):
        wrapped = with_expert_parallel(recipe, Sharded(ep=2)).model
    assert {type(moe.dispatcher) for moe in find_all(wrapped, MoE)} == {ExpertParallel}


@pytest.mark.parametrize(
    ("precision", "dtype", "reduce_dtype"),
    [
        (Precision(), torch.float32, None),
        (DoublePrecision(), torch.float64, None),
        (HalfPrecision("bf16-true"), torch.bfloat16, torch.float32),
        (HalfPrecision("16-true"), torch.float16, torch.float32),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_model_is_converted_and_then_sharded_with_gradients_reduced_in_at_least_fp32(
    precision: Precision, dtype: torch.dtype, reduce_dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sharded parameters cannot be converted."""
    calls: list[Any] = []
    monkeypatch.setattr(
        "moekit_lightning.sharded.module.shard", lambda *args, **more: calls.append((args[0].weight.dtype, *args))
    )
    strategy = ShardedStrategy(Sharded(ep=2))
    strategy.parallel_devices = [torch.device("cpu")]
    strategy.cluster_environment = cast(Any, SimpleNamespace(local_rank=lambda: 0))
    strategy.precision_plugin = precision
    model = cast(Model, nn.Linear(2, 2))
    strategy.shard(model)
    ((found, sharded, ep, device, policy),) = calls
    assert (found, sharded, ep, device) == (dtype, model, 2, "cpu")
    assert (policy.reduce_dtype, policy.param_dtype) == (reduce_dtype, None)


def test_every_rank_gets_different_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """``ModelParallelStrategy`` would distribute samples over its own data-parallel dimension."""
    strategy = ShardedStrategy(Sharded())
    monkeypatch.setattr(ShardedStrategy, "world_size", 4)
    monkeypatch.setattr(ShardedStrategy, "global_rank", 3)
    assert strategy.distributed_sampler_kwargs == {"num_replicas": 4, "rank": 3}


def sharded_strategy() -> ShardedStrategy:
    strategy = ShardedStrategy(Sharded())
    strategy.checkpoint_io = AtomicCheckpointIO()
    return strategy


def test_the_timeout_is_the_layouts_once_training_starts(tmp_path: Path) -> None:
    """Before, a rank may import, read its data and load a checkpoint for longer."""
    strategy = ShardedStrategy(Sharded(timeout=7))
    assert strategy._timeout == timedelta(minutes=10)
    assert ShardedStrategy(Sharded(timeout=900))._timeout == timedelta(minutes=15)
    store = f"file://{tmp_path}/store"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1, timeout=timedelta(minutes=10))
    try:
        strategy.on_train_start()
        assert dist.group.WORLD is not None and timeout_of(dist.group.WORLD) == timedelta(seconds=7)
    finally:
        dist.destroy_process_group()


def test_of_models_and_optimizers_only_slices_are_read(tmp_path: Path) -> None:
    """An unsharded optimizer's state would take the memory of two models on every rank."""
    tensor = torch.arange(6.0)
    states = [{"state": {"w": {"exp_avg": tensor}}}]
    save_tree({"state_dict": {"w": tensor}, "optimizer_states": states, "loops": ({"seen": tensor},)}, tmp_path / "c")
    found = sharded_strategy().load_checkpoint(tmp_path / "c")
    for handle in (found["state_dict"]["w"], found["optimizer_states"][0]["state"]["w"]["exp_avg"]):
        assert isinstance(handle, Handle) and handle.read((2,), (2,)).tolist() == [2, 3]
    assert torch.equal(found["loops"][0]["seen"], tensor)


@pytest.mark.parametrize(
    ("saved", "different"),
    [
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, ""),
        ({"weight": torch.ones(2, 3)}, "bias"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2), "more": torch.ones(1)}, "more"),
        ({"weight": torch.ones(3, 3), "bias": torch.ones(2)}, "weight"),
    ],
)
def test_a_checkpoint_of_another_model_is_rejected_and_changes_nothing(
    tmp_path: Path, saved: dict[str, Tensor], different: str
) -> None:
    save_tree({"state_dict": saved}, tmp_path / "c")
    strategy, module = sharded_strategy(), nn.Linear(3, 2)
    strategy._lightning_module = cast(Any, module)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    checkpoint = strategy.load_checkpoint(tmp_path / "c")
    if different:
        with pytest.raises(CheckpointError, match=f"the checkpoint does not fit the model: {different}$"):
            strategy.load_model_state_dict(checkpoint)
    else:
        strategy.load_model_state_dict(checkpoint)
    expected = before if different else saved
    assert all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())


def test_teardown_waits_for_a_checkpoint_that_is_being_written(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(ModelParallelStrategy, "teardown", lambda self: calls.append("processes"))
    strategy = ShardedStrategy(Sharded())
    strategy.checkpoint_io = cast(Any, SimpleNamespace(teardown=lambda: calls.append("written")))
    strategy.teardown()
    assert calls == ["processes", "written"]


@pytest.mark.parametrize(
    ("ep", "world", "problem"),
    [
        (2, 1, "the 1 rank\n  at trainer.strategy.ep\n  expected one of 1\n  note: trainer.devices sets the number"),
        (4, 4, "the 6 experts of a layer\n  at trainer.strategy.ep\n  expected one of 1, 2, 3, 6$"),
    ],
)
def test_an_uneven_layout_is_rejected_with_the_sizes_that_fit(ep: int, world: int, problem: str) -> None:
    few = ["groups=1", "top_groups=1", "top_k=2"]
    recipe = load("deepseek_v3", ["model.moe.experts.count=6", *(f"model.moe.router.{option}" for option in few)])
    check_layout(recipe, Sharded(ep=3), 6)
    with pytest.raises(SpecError, match=f"ep={ep} does not divide {problem}"):
        check_layout(recipe, Sharded(ep=ep), world)


@pytest.mark.parametrize("precision", ["16-mixed", 16])
@pytest.mark.parametrize(("layout", "named"), [("ep: 2", "ep=2"), ("dense: replicate", "dense=replicate")])
def test_a_loss_scale_and_gradients_of_two_layouts_are_rejected_in_the_spec(
    precision: str | int, layout: str, named: str
) -> None:
    strategy = f"trainer.strategy={{use: sharded, {layout}}}"
    with pytest.raises(SpecError, match=rf"16-mixed cannot be used with {named}: (?s:.*)or ep: 1(?s:.*)at trainer"):
        load("deepseek_v3", [strategy, f"trainer.precision={precision}"])
    load("deepseek_v3", [strategy, "trainer.precision=bf16-mixed"])
    load("deepseek_v3", ["trainer.strategy={use: sharded}", f"trainer.precision={precision}"])


def test_a_loss_scale_and_expert_parallelism_are_rejected_by_the_strategy() -> None:
    """Of a Trainer made by hand, whose precision no spec knows."""
    strategy = ShardedStrategy(Sharded(ep=2))
    strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(SpecError, match="16-mixed cannot be used with ep=2"):
        strategy.shard(cast(Model, nn.Linear(2, 2)))
