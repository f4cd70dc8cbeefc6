"""Sharded models, seen from four simulated ranks one after another (``fake_ranks.py``).

Layouts and the calls of collectives are tested here; what they send and sum, in several processes
(``tests/e2e/test_sharded``).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from fake_ranks import WORLD, as_rank
from ranks import run_forked
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from moekit import load
from moekit.compat import TorchDispatchMode
from moekit.contracts import Batch, Init, LossSum, Model
from moekit.errors import MoekitError
from moekit.moe_layer import MoELayer
from moekit.registry import build
from moekit.shards import (
    TensorShard,
    local,
    optimizer_state_shards,
    parameter_shards,
    slices_of,
    state_dict_shards,
)
from moekit.training.balance import BalanceStep
from moekit.training.step import MicroBatch, NonFiniteStep, OptimizerStep, StepResult, total_norm
from moekit.weights import init_weights
from moekit_lightning.sharded import Sharded
from moekit_lightning.sharded.fsdp import shard
from moekit_lightning.sharded.module import ShardedStrategy, with_expert_parallel

LAYOUTS = pytest.mark.parametrize("ep", [1, 2, 4])
OPTIONS = [
    "model.attention={use: mla, heads: 2, query_rank: 8, kv_rank: 8, nope_dim: 4, rope_dim: 4, value_dim: 4}",
    "model.dim=16", "model.depth=2", "model.ffn.hidden=24", "model.vocab=48", "model.moe.router.top_k=3",
    "model.moe.router.groups=4", "model.moe.router.top_groups=2", "model.moe.experts.count=8",
    "model.moe.experts.hidden=8", "model.moe.shared.hidden=8", "model.mtp=null", "data=null",
]  # fmt: skip
RECIPE = load("deepseek_v3", OPTIONS)
DISPATCHERS = ("loop", "grouped", "fused", "capacity")


@dataclass(frozen=True, kw_only=True)
class RankView:
    """A sharded model, as one rank has it.

    Attributes:
        weights, state: shards of parameters, and of their momentum.
        replicated: names in the state dict that are not sharded.
        meshes: the ranks over which each parameter is sharded; without FSDP, this rank.
        norm, squares: of ``norm_of``.
    """

    weights: dict[str, TensorShard]
    state: dict[str, TensorShard]
    replicated: set[str]
    meshes: dict[str, list[int]]
    norm: float
    squares: list[Tensor]


def model_of(ep: int) -> Model:
    model: Model = build(with_expert_parallel(RECIPE, Sharded(ep=ep)).model)
    init_weights(model, Init(std=0.5), seed=3)
    return model


@cache
def views(ep: int, replicate_dense: bool = False) -> tuple[RankView, ...]:
    """The sharded model on each rank."""
    found = []
    for rank in range(WORLD):
        with as_rank(rank):
            model = model_of(ep)
            shard(model, ep, "cpu", replicate_dense=replicate_dense)
            found.append(view_of(model))
    return tuple(found)


def norm_of(model: Model) -> tuple[float, list[Tensor]]:
    """The norm of gradients that equal the weights, without what is all-reduced; and that."""
    for p in model.parameters():
        p.grad = p.detach().clone()
    squares: list[Tensor] = []

    def all_reduce(tensor: Tensor, group: dist.ProcessGroup | None = None) -> None:
        assert group is None, "not over all ranks"
        squares.append(tensor.clone())
        tensor.zero_()

    with mock.patch.object(dist, "all_reduce", all_reduce):
        return float(total_norm(model)), squares


def view_of(model: Model) -> RankView:
    mesh = {name: p.device_mesh.mesh.tolist() for name, p in model.named_parameters() if isinstance(p, DTensor)}
    norm, squares = norm_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, foreach=False)
    optimizer.step()
    return RankView(
        weights=parameter_shards(model),
        state={name: state["momentum_buffer"] for name, state in optimizer_state_shards(model, optimizer).items()},
        replicated={name for name, each in state_dict_shards(model).items() if each.sizes == each.global_shape},
        meshes={name: mesh.get(name, [dist.get_rank()]) for name, _ in model.named_parameters()},
        norm=norm,
        squares=squares,
    )


@LAYOUTS
@pytest.mark.parametrize("replicate", [False, True])
@pytest.mark.parametrize("what", ["weights", "state"])
def test_every_element_is_on_one_rank_at_its_place(ep: int, what: str, replicate: bool) -> None:
    """Experts are distributed and sharded over replicas, all else over every rank or on each; momentum alike."""
    ranks: list[dict[str, TensorShard]] = [getattr(view, what) for view in views(ep, replicate)]
    expected = {name: p.detach() for name, p in model_of(1).named_parameters()}
    assert all(shards.keys() == expected.keys() for shards in ranks)
    for name, tensor in expected.items():
        times, whole = torch.zeros(tensor.shape), torch.zeros_like(tensor)
        for each in (shards[name] for shards in ranks):
            assert each.global_shape == tensor.shape
            times[slices_of(each.offset, each.sizes)] += 1
            whole[slices_of(each.offset, each.sizes)] = each.tensor
        assert (times == (WORLD if replicate and ".experts." not in name else 1)).all(), name
        assert torch.equal(whole, tensor), name


@LAYOUTS
def test_experts_are_sharded_over_their_replicas_and_all_else_over_every_rank(ep: int) -> None:
    for rank, view in enumerate(views(ep)):
        for name, ranks in view.meshes.items():
            routed = ".experts." in name and ep > 1
            assert ranks == (list(range(rank % ep, WORLD, ep)) if routed else list(range(WORLD))), name


@pytest.mark.parametrize(("size", "ep"), [(2, 1), (2, 4), (4, 2)])
def test_experts_that_are_distributed_over_another_number_of_ranks_are_rejected(size: int, ep: int) -> None:
    with as_rank(1), pytest.raises(ValueError, match=rf"^{size} ranks share the experts of a layer.*expected ep={ep}$"):
        shard(model_of(size), ep, "cpu")


@LAYOUTS
@pytest.mark.parametrize("replicate", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_a_trained_parameter_of_a_balancer_is_rejected_where_its_gradient_would_be_partial(
    ep: int, replicate: bool, trained: bool
) -> None:
    """It would be sharded over the replicas of the experts."""
    wrong = ep == 2 and trained and not replicate
    with as_rank(1):
        model = model_of(ep)
        layer = next(module for module in model.modules() if isinstance(module, MoELayer))
        layer.balancers["bias"].scale = nn.Parameter(torch.ones(4), requires_grad=trained)
        error = pytest.raises(MoekitError, match=r"^'balancers.bias.scale' of a mixture layer is trained")
        with error if wrong else nullcontext():
            shard(model, ep, "cpu", replicate_dense=replicate)


@LAYOUTS
@pytest.mark.parametrize("replicate", [False, True])
def test_the_norm_counts_every_gradient_once(ep: int, replicate: bool) -> None:
    replicated = [p for name, p in model_of(1).named_parameters() if replicate and ".experts." not in name]
    whole = float(sum(p.detach().double().square().sum() for p in replicated))
    assert all(view.norm**2 == pytest.approx(whole) for view in views(ep, replicate)), "counted on every rank"
    squares = torch.stack([torch.stack(view.squares).sum() for view in views(ep, replicate)])
    expected = torch.cat([p.detach().flatten().double() for p in model_of(1).parameters()]).norm()
    torch.testing.assert_close((squares.sum() + whole).sqrt(), expected, rtol=1e-6, atol=0)


def test_the_norm_all_reduces_no_replicated_gradient() -> None:
    """In a training loop of one's own: experts are distributed, and nothing is sharded."""
    with as_rank(1):
        model = model_of(2)
        norm, squares = norm_of(model)
    replicated = [p.detach().flatten().double() for name, p in model.named_parameters() if ".experts." not in name]
    routed = [p.detach().flatten().double() for name, p in model.named_parameters() if ".experts." in name]
    assert norm == pytest.approx(float(torch.cat(replicated).norm()), rel=1e-6)
    assert float(torch.stack(squares).sum().sqrt()) == pytest.approx(float(torch.cat(routed).norm()), rel=1e-6)


@LAYOUTS
def test_what_is_still_gathered_after_a_validation_is_saved_as_shards(ep: int) -> None:
    """Experts of two replicas lost the place of theirs among all: a checkpoint had half of them."""
    with as_rank(1):
        model = model_of(ep)
        shard(model, ep, "cpu")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, foreach=False)
        norm_of(model)
        optimizer.step()

        def weights() -> dict[str, TensorShard]:
            return state_dict_shards(model)

        def state() -> dict[str, TensorShard]:
            return {n: each["momentum_buffer"] for n, each in optimizer_state_shards(model, optimizer).items()}

        for shards in (weights, state):
            expected = {name: (each.global_shape, each.offset, each.sizes) for name, each in shards().items()}
            for each in model.modules():
                if isinstance(each, FSDPModule):
                    each.unshard()
            assert not all(isinstance(p, DTensor) for p in model.parameters())
            assert {name: (each.global_shape, each.offset, each.sizes) for name, each in shards().items()} == expected


def test_buffers_are_replicated() -> None:
    model = model_of(1)
    buffers = model.state_dict().keys() - dict(model.named_parameters()).keys()
    assert buffers and all(buffers <= view.replicated for view in views(2))


class Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts all-gathers and reduce-scatters by elements and dtype; the result of every reduction is 1."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.gathered: Counter[tuple[int, torch.dtype]] = Counter()
        self.reduced: Counter[tuple[int, torch.dtype]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.c10d._allgather_base_.default:
            self.gathered[args[0].numel(), args[0].dtype] += 1
            args[0].view(-1, args[1].numel()).copy_(args[1].clone())
        elif func is torch.ops.c10d._reduce_scatter_base_.default:
            self.reduced[args[1].numel(), args[1].dtype] += 1
            args[0].fill_(1)
        elif func is torch.ops.c10d.alltoall_base_.default:
            args[0].copy_(args[1])  # as if every rank had the same tokens
        return result


FFN = "blocks.1.ffn"
PARTS = (f"{FFN}.router.", f"{FFN}.experts.", f"{FFN}.shared.")


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")
@pytest.mark.parametrize(
    ("ep", "units", "experts_are_gathered"),
    [
        (1, ("blocks.0.", "blocks.1."), True),
        (2, (*PARTS, "blocks.0.", "blocks.1."), True),  # experts are a unit: they have fewer ranks
        (4, ("blocks.0.", "blocks.1."), False),
    ],
)
def test_a_unit_is_gathered_at_once_and_gradients_are_summed_in_the_policys_dtype(
    ep: int, units: tuple[str, ...], experts_are_gathered: bool
) -> None:
    """Sizes of all all-gathers in a forward pass, and of all reduce-scatters in backward."""
    with as_rank(1):
        model = model_of(ep)
        shard(model, ep, "cpu", MixedPrecisionPolicy(reduce_dtype=torch.float64))
        with Collectives() as forward:
            output = model(torch.zeros(2, 8, dtype=torch.int64))
        with Collectives() as backward:
            output.y.sum().backward()
        gradients = [local(p.grad) for p in model.parameters() if isinstance(p, DTensor) and p.grad is not None]

    expected: Counter[str] = Counter()
    for name, each in parameter_shards(model).items():
        unit = next((unit for unit in units if name.startswith(unit)), "the rest")
        routed, size = name.startswith(PARTS[1]), math.prod(each.global_shape)
        expected[unit] += size // ep * experts_are_gathered if routed else size
    assert forward.gathered == Counter((size, torch.float32) for size in expected.values())
    again = [size for unit, size in expected.items() if unit == "blocks.0."]  # the rest and the last block are kept
    assert backward.gathered == Counter((size, torch.float32) for size in again)
    assert backward.reduced == Counter((size, torch.float64) for size in expected.values())
    assert gradients and all((gradient == 1).all() for gradient in gradients), "divided after they were reduced"


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")
@pytest.mark.parametrize("ep", [1, 2, 4])
def test_a_replicated_dense_part_is_neither_gathered_nor_scattered(ep: int) -> None:
    """Banks alone are units; those of a single rank are none."""
    with as_rank(1):
        model = model_of(ep)
        shard(model, ep, "cpu", replicate_dense=True)
        bank = sum(p.numel() for name, p in model.named_parameters() if name.startswith(PARTS[1]))
        with Collectives() as forward:
            output = model(torch.zeros(2, 8, dtype=torch.int64))
        with Collectives() as backward:
            output.y.sum().backward()
    expected = Counter({(bank, torch.float32): 1} if ep < WORLD else {})
    assert forward.gathered == backward.reduced == expected and not backward.gathered  # of the last block


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")
@pytest.mark.parametrize("recompute", ["none", "experts", "blocks"])
@pytest.mark.parametrize(
    ("ep", "replicate", "units", "gathered"),
    [
        (1, False, [1, 1, 1, 1, 1], [2, 3, 4, 5]),
        (2, False, [1, 1, 4, 4, 4], [6, 10, 14, 14]),  # a mixture's router, bank and shared experts are units
        (1, True, [0, 0, 1, 1, 1], [0, 0, 1, 2]),
        (2, True, [0, 0, 1, 1, 1], [1, 1, 2, 3]),
    ],
)
def test_weights_of_a_block_are_gathered_while_the_one_before_computes(
    ep: int, replicate: bool, units: list[int], gathered: list[int], recompute: str
) -> None:
    """If ranks share experts. No weight is gathered more often for it, and those of the last block once.

    Args:
        units: of the model outside of blocks, and of each block, of which the first is dense.
        gathered: units, when the attention of each block begins.
    """
    deep = load("deepseek_v3", [*OPTIONS, "model.depth=4", f"model.recompute={recompute}"])
    found: list[int] = []
    with as_rank(1):
        model: Any = build(with_expert_parallel(deep, Sharded(ep=ep)).model)
        shard(model, ep, "cpu", replicate_dense=replicate)
        for block in model.blocks:
            block.attention.register_forward_pre_hook(lambda *args: found.append(forward.gathered.total()))
        with Collectives() as forward:
            output = model(torch.zeros(2, 8, dtype=torch.int64))
        with Collectives() as backward:
            output.y.sum().backward()
    assert found[:4] == gathered and forward.gathered.total() == sum(units)
    assert backward.gathered.total() == sum(units[1:-1])


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")
@pytest.mark.parametrize(("ep", "mixture"), [(1, 1), (2, 4), (4, 1)])
def test_a_block_that_only_training_runs_is_not_gathered_by_an_evaluation(ep: int, mixture: int) -> None:
    """What its last block gathered ahead was used in training, after ``start.run`` had loaded other weights.

    Args:
        ep: size of an expert group.
        mixture: units of a block with a mixture.
    """
    recipe = load("deepseek_v3", [*OPTIONS, "model.mtp={depth: 1}"])
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    with as_rank(1):
        model: Model = build(with_expert_parallel(recipe, Sharded(ep=ep)).model)
        shard(model, ep, "cpu")
        with torch.no_grad(), Collectives() as evaluation:
            model.eval()(tokens)
        with Collectives() as training:
            model.train()(tokens)
    blocks = 1 + mixture
    assert evaluation.gathered.total() == 1 + blocks
    assert training.gathered.total() == blocks + mixture, "the root still has its weights"


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")
@pytest.mark.parametrize(("reduce", "times"), [("micro_batch", 3), ("step", 1)])
def test_gradients_are_reduced_after_each_micro_batch_or_once_in_a_step(reduce: Any, times: int) -> None:
    """Lightning blocks the reduction for all micro-batches but the last."""
    strategy = ShardedStrategy(Sharded(ep=2, reduce=reduce))
    with as_rank(1):
        model = model_of(2)
        shard(model, 2, "cpu")
        strategy._lightning_module = cast(Any, model)
        with Collectives() as seen:
            for blocked in (strategy.block_backward_sync(), strategy.block_backward_sync(), nullcontext()):
                with blocked:
                    model(torch.zeros(2, 8, dtype=torch.int64)).y.sum().backward()
        units = sum(isinstance(module, FSDPModule) for module in model.modules())
    assert seen.reduced.total() == times * units


def stepped(ep: int, factor: float, *, runs_again: bool) -> tuple[list[Tensor | None], StepResult]:
    """The gradients of this rank's shards after a step whose loss has a factor, and the step.

    If it ``runs_again``, a callback has run the model before the step ends, and the hook of a step that is not finite
    runs it too.
    """
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    with as_rank(1), Collectives():
        model = model_of(ep)
        shard(model, ep, "cpu")
        shards, step = list(model.parameters()), OptimizerStep(model, cast(Any, None), BalanceStep(model))

        def run(*_: object) -> NonFiniteStep:
            if runs_again:
                with torch.no_grad():
                    model(tokens)
            return NonFiniteStep("")

        output = model(tokens)
        loss = LossSum(total=output.y.sum() * factor, count=torch.tensor(2))
        step.add(output, loss, MicroBatch(Batch(tokens, tokens), 0, 0.0)).backward()  # type: ignore[no-untyped-call]
        run()
        with mock.patch.object(step, "_diagnose", run):
            done = step.finish(1, 0.0, None)
        return [p.grad for p in shards], done


@LAYOUTS
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")
def test_a_model_that_runs_again_within_a_step_changes_no_gradient(ep: int) -> None:
    """The root and the last block stay gathered then, and their parameters had no gradients."""
    expected, once = stepped(ep, 1.0, runs_again=False)
    found, twice = stepped(ep, 1.0, runs_again=True)
    assert once.norm == twice.norm > 0
    for a, b in zip(found, expected, strict=True):
        assert a is not None and b is not None and torch.equal(local(a), local(b))


@LAYOUTS
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")
def test_a_hook_that_runs_the_model_leaves_no_gradient_of_a_skipped_step(ep: int) -> None:
    """They made weights NaN."""
    gradients, done = stepped(ep, math.nan, runs_again=True)
    assert done.non_finite is not None and gradients == [None] * len(gradients)


@pytest.mark.parametrize("ep", [1, 2])
def test_experts_that_do_not_divide_evenly_are_sharded_along_another_dimension(ep: int) -> None:
    """Six over four ranks, or three over two, would leave some with more: each has a part of every expert."""
    changes = ["model.moe.experts.count=6", "model.moe.router.groups=2", "model.moe.router.top_groups=1"]
    with as_rank(3):
        model: Model = build(with_expert_parallel(load("deepseek_v3", [*OPTIONS, *changes]), Sharded(ep=ep)).model)
        shard(model, ep, "cpu")
        held = {name: each for name, each in parameter_shards(model).items() if ".experts." in name}
    assert held
    for name, each in held.items():
        assert each.tensor.numel() * WORLD == math.prod(each.global_shape), name


def test_experts_gathered_in_bf16_give_the_same_bits_under_autocast(tmp_path: Path) -> None:
    """Outputs and gradients: autocast rounds fp32 weights to bf16 before each product."""
    run_forked(Path(__file__).with_name("bank_dtype_rank.py"), 2, str(tmp_path / "out"), *DISPATCHERS)
    assert json.loads((tmp_path / "out").read_text()) == [[], []]
