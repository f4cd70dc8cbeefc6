"""Weights, gradients and optimizer state of a plan, against those of a trained model; layouts; advice."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import pytest
import torch
from torch import Tensor

from moekit import load
from moekit.contracts import Batch
from moekit.errors import MoekitError
from moekit.parallel.sharding import shard_dim
from moekit.params import build_on_meta
from moekit.planning.advice import advise
from moekit.planning.empty_batch import empty_batch
from moekit.planning.plan import Plan, Planner, recompute_of
from moekit.planning.request import MOST, Request, divisors, eps_of, precision_of, shape_of
from moekit.planning.weight_bytes import Layout, gathered, weights_of
from moekit.spec.recipe import Recipe
from moekit.training import LitMoE
from moekit.training.optim import optimizer_of

GIB = 2**30


def asked(recipe: Recipe, devices: int = 1, eps: Sequence[int] = (), **changes: object) -> Request:
    options: dict[str, object] = {
        "devices": devices, "eps": eps_of(recipe, devices, eps), "batch": 2, "sequence": 16, "accumulate": 1,
        "precision": "32-true", "device_memory": 80 * GIB,
    }  # fmt: skip
    return Request(**(options | changes))  # type: ignore[arg-type]


def plan_of(recipe: Recipe, devices: int = 1, eps: Sequence[int] = (), **changes: object) -> Plan:
    return Planner(recipe).plan(asked(recipe, devices, eps, **changes), recompute_of(recipe.model))


def size(tensors: object) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "optimizer", "words"),
    [
        ("deepseek_v3", "adamw", ()),
        ("deepseek_v3", "adafactor", ("optimizer={use: adafactor}",)),
        ("deepseek_v3", "sgd", ("optimizer={use: sgd}",)),
        ("deepseek_v3", "sgd", ("optimizer={use: sgd, momentum: 0.9}",)),
        ("switch", "adamw", ("model.tied=true",)),
        ("gshard", "adamw", ()),
        ("shazeer2017", "adamw", ()),
    ],
)
def test_what_one_process_holds_to_the_byte(name: str, optimizer: str, words: tuple[str, ...]) -> None:
    recipe = load(name, [*words, "schedule=null"])
    module = LitMoE(recipe)
    moves = optimizer_of(recipe, module.model, 10)
    batch = empty_batch(recipe.model, 2, 16)
    output = module.model.on(batch)
    (module.objective(output, batch).total + sum(r.loss() for r in output.reports.values())).backward()
    moves.step()
    state = [value for state in moves.state.values() for value in state.values() if isinstance(value, Tensor)]

    plan = plan_of(recipe)
    memory = plan.rows[0].memory
    assert plan.optimizer == optimizer
    assert memory.parameters == size([*module.model.parameters(), *module.model.buffers()])
    assert memory.gradients == size(p.grad for p in module.model.parameters() if p.grad is not None)
    assert memory.optimizer == size(state)
    assert memory.gathered == memory.gathered_gradients == memory.copies == memory.exchange == 0


def test_a_dense_layer_is_cut_too() -> None:
    """It is a bank of one expert: by its first dimension, one device would hold it all."""
    assert shard_dim((1, 864, 128), 4) == 1 and shard_dim((1, 7, 5), 4) == 0
    assert (
        shard_dim((256, 4096, 7168), 32) == 0
        and shard_dim((4, 4096, 7168), 32) == 1
        and shard_dim((4, 7168, 2048), 2048) == 2
    )
    assert shard_dim((129281, 7168), 2048) == 0 and shard_dim((), 4) == 0


@pytest.mark.parametrize("ep", [1, 2, 4, 8])
def test_nothing_is_lost_in_shards(ep: int) -> None:
    """Where everything divides evenly, the devices' parts add up; experts and all else."""
    layout = Layout(devices=8, ep=ep)
    for weight in weights_of(build_on_meta(load("deepseek_v3").model)):
        whole, part = prod(weight.shape), prod(weight.shard(layout))
        assert prod(weight.held(layout)) * (ep if weight.experts else 1) == whole
        assert part * 8 == whole or (weight.shape[0] % 8 and not weight.experts)
    _, block, blocks = gathered(weights_of(build_on_meta(load("deepseek_v3").model)), layout)
    assert 0 < block < blocks


def test_experts_that_no_other_rank_holds_are_not_gathered() -> None:
    weights = weights_of(build_on_meta(load("deepseek_v3").model))
    experts = [w for w in weights if w.experts]
    assert gathered(experts, Layout(devices=4, ep=4)) == (0, 0, 0)
    assert gathered(experts, Layout(devices=8, ep=4))[2] == sum(prod(w.shape) for w in experts) // 4


def test_the_wire() -> None:
    """One rank sends nothing; more of them, more; recomputing sends tokens once more, accumulation everything again."""
    recipe = load("deepseek_v3")
    alone, two, four = plan_of(recipe, 4, (1, 2, 4)).rows
    assert alone.wire.exchanged == alone.wire.messages == 0 < two.wire.exchanged < four.wire.exchanged
    assert alone.wire.gathers > two.wire.gathers > four.wire.gathers > 0
    layer = next(iter(two.wire.layers.values()))
    assert layer.rows == layer.reached / 2
    # 4 bytes: a token out and back, its gradients; 8 gates there and their gradients; 8 numbers; counts by the way
    assert layer.bytes_per_token == pytest.approx(layer.rows * 4 * (4 * 128 + 2 * 8 + 8) + 16 / 32)
    again = Planner(recipe).plan(asked(recipe, 4, (2,), accumulate=3), "blocks").rows[0].wire
    assert again.messages == 3 * (two.wire.messages + 5 * 4)
    assert again.gathers == pytest.approx(3 * two.wire.gathers)
    assert 1.4 < again.exchanged / 3 / two.wire.exchanged < 1.6


def test_layouts() -> None:
    recipe = load("deepseek_v3")
    assert eps_of(recipe, 12) == (1, 2, 4)
    assert eps_of(load("deepseek_moe-2b"), 9) == (1, 3, 9)  # 63 experts
    assert eps_of(load("jacobs1991"), 4) == (1,) == eps_of(load("base/language_model"), 4)
    with pytest.raises(
        MoekitError, match="ep=3 does not divide 12 devices and 64 experts evenly\n  expected one of 1, 2, 4"
    ):
        eps_of(recipe, 12, (3,))
    with pytest.raises(MoekitError, match="soft routing"):
        eps_of(load("jacobs1991"), 4, (2,))
    with pytest.raises(MoekitError, match="no routed experts"):
        eps_of(load("base/language_model"), 4, (2,))


def test_what_a_recipe_says_of_its_batches() -> None:
    assert shape_of(load("deepseek_v3")) == (16, 128) == shape_of(load("switch"))
    assert shape_of(load("deepseek_v3-671b")) == (1, 4096)
    assert precision_of(load("deepseek_v3", ["trainer.precision=bf16"])) == "bf16-mixed"
    with pytest.raises(MoekitError, match="no plan for the precision 'fp8'\n  expected one of 32-true"):
        asked(load("deepseek_v3"), precision="fp8")
    with pytest.raises(MoekitError, match="devices=0 is out of range\n  expected at least 1"):
        Request(devices=0, eps=(1,), batch=1, sequence=1, accumulate=1, precision="32-true", device_memory=1)


def test_advice_is_tried() -> None:
    """What would fit is the smallest change that does; where nothing does, it is told what comes nearest."""
    recipe = load("deepseek_v3", ["model.depth=2", "model.mtp=null"])
    request = asked(recipe, 4)
    planner = Planner(recipe)
    plan = planner.plan(request, "none")
    least = min(row.memory.total for row in plan.rows)
    less = min(row.memory.total for row in planner.plan(request, "experts").rows)
    tight = planner.plan(asked(recipe, 4, batch=2, device_memory=(least + less) // 2), "none")
    assert not any(map(tight.fits, tight.rows))
    (advice,) = advise(planner, tight)
    assert advice.fits and advice.what == "--recompute experts" and advice.row.memory.total == less
    hopeless = planner.plan(asked(recipe, 4, device_memory=GIB // 1024), "none")
    (advice,) = advise(planner, hopeless)
    assert not advice.fits and "--recompute blocks --batch 1 --accumulate 2 --devices" in advice.what


def test_advice_takes_few_passes() -> None:
    """The largest micro-batch that fits, of 2^20 cases to one, in as many passes as a bisection takes."""
    recipe = load("jacobs1991")
    least = [plan_of(recipe, batch=2**i).rows[0].memory.total for i in (6, 7)]
    passes: list[str] = []
    planner = Planner(recipe, passes.append)
    plan = planner.plan(asked(recipe, batch=2**20, device_memory=sum(least) // 2), "")
    (advice,) = advise(planner, plan)
    assert advice.fits and advice.row.memory.total == least[0]
    assert advice.what == f"--batch 64 --accumulate {2**20 // 64}"
    assert passes[0] == f"a pass over {2**20} x 16 tokens, recompute none"
    assert len(passes) <= 1 + 1 + 5  # the plan's own; the smallest; 19 others


def test_advice_keeps_to_what_can_be_asked() -> None:
    """Neither more devices nor more micro-batches than a request may have."""
    recipe = load("jacobs1991")
    planner = Planner(recipe)
    plan = planner.plan(asked(recipe, MOST, batch=64, accumulate=MOST // 6, device_memory=1), "")
    (advice,) = advise(planner, plan)
    assert not advice.fits and advice.what == f"--batch 16 --accumulate {MOST // 6 * 4}"


def test_layouts_of_more_devices_than_can_be_counted() -> None:
    assert eps_of(load("deepseek_v3"), 10**18 * 64) == (1, 2, 4, 8, 16, 32, 64)
    assert [divisors(n) for n in (1, 12, 36, 64)] == [
        [1], [1, 2, 3, 4, 6, 12], [1, 2, 3, 4, 6, 9, 12, 18, 36], [1, 2, 4, 8, 16, 32, 64]
    ]  # fmt: skip


def test_sizes_that_overflow_are_refused() -> None:
    recipe = load("jacobs1991")
    with pytest.raises(MoekitError, match="batch=1000000000001 is out of range\n  expected at most 1000000000000"):
        asked(recipe, batch=10**12 + 1)
    for name in ("jacobs1991", "deepseek_v3"):
        with pytest.raises(
            MoekitError, match=r"some tensor would have 2\*\*63 bytes or more\n  expected fewer than 1000"
        ):
            plan_of(load(name), batch=10**12, sequence=10**12)


def test_a_bank_that_is_no_stack_is_refused() -> None:
    model = build_on_meta(load("deepseek_v3").model)
    layer = next(m for m in model.modules() if type(m).__name__ == "MoELayer")
    layer.experts = layer.experts.from_modules([torch.nn.Linear(3, 3) for _ in range(2)], 3)  # type: ignore[union-attr, operator]
    with pytest.raises(MoekitError, match="does not stack its experts' weights"):
        weights_of(model)


def test_cases_say_how_wide_they_are() -> None:
    batch = empty_batch(load("jacobs1991").model, 3, 2)
    assert isinstance(batch, Batch) and batch.inputs.shape == (6, 2)
