"""Memory and traffic of a plan, against a trained model, and by hand for five weights on four devices."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan_cases import REQUEST, SPEC, USE, WEIGHTS, plan_of, request_for
from torch import Tensor

from moekit import load
from moekit.errors import MoekitError
from moekit.registry import Registry
from moekit.spec.recipe import Start
from moekit.training import LitMoE
from moekit.training.optim import optimizer_of
from moekit_plan.activations import REST, Pass, empty_batch
from moekit_plan.plan import Memory, RunPlanner
from moekit_plan.weight_bytes import Weight


def size(tensors: object) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "optimizer", "overrides"),
    [
        ("deepseek_v3", "adamw", ()),
        ("deepseek_v3", "adafactor", ("optimizer={use: adafactor}",)),
        ("deepseek_v3", "sgd", ("optimizer={use: sgd}",)),
        ("deepseek_v3", "sgd", ("optimizer={use: sgd, momentum: 0.9}",)),
        ("switch", "adamw", ("model.tied=true",)),
        ("gshard", "adamw", ()),
        ("shazeer2017", "adamw", ()),
        ("deepseek_v3", "adamw", ("compare=null", "start={run: some/run, freeze: [experts, embedding]}")),
        ("deepseek_v3", "adamw", ("compare=null", "start={run: some/run, train: [attention, head]}")),
    ],
)
def test_a_plan_of_one_process_is_exact_to_the_byte(name: str, optimizer: str, overrides: tuple[str, ...]) -> None:
    recipe = load(name, [*overrides, "schedule=null"])
    module = LitMoE(recipe)
    steps = optimizer_of(recipe, module.model, 10)
    batch = empty_batch(recipe.model, 2, 16)
    output = module.model.on(batch)
    (module.objective(output, batch).total + sum(r.loss() for r in output.reports.values())).backward()
    steps.step()
    state = [value for state in steps.state.values() for value in state.values() if isinstance(value, Tensor)]

    plan = plan_of(recipe)
    memory = plan.rows[0].memory
    assert plan.optimizer == optimizer
    assert memory.parameters == size([*module.model.parameters(), *module.model.buffers()])
    assert memory.gradients == size(p.grad for p in module.model.parameters() if p.grad is not None)
    assert memory.optimizer == size(state)
    assert memory.gathered == memory.gathered_gradients == memory.copies == memory.exchange == 0


def test_gradients_of_weights_that_a_run_does_not_train_are_not_planned() -> None:
    """Nor what backward would need for them alone. They are gathered like all others."""
    whole = load("deepseek_v3", ["compare=null"])
    recipe = replace(whole, start=Start(run="some/run", train=["attention", "head"]))
    tuned, every = (plan_of(each, 4, (1,)).rows[0].memory for each in (recipe, whole))
    assert tuned.gathered == every.gathered and 2 * tuned.gathered_gradients < every.gathered_gradients
    assert tuned.activations < every.activations


def test_without_an_optimizer_the_default_one_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(load("deepseek_v3"), optimizer=None, schedule=None)
    assert plan_of(recipe).optimizer == "adamw"
    monkeypatch.setattr(Registry, "default", lambda self, kind: None)
    with pytest.raises(MoekitError, match="no plugin offers a default one\n  expected optimizer=NAME"):
        plan_of(recipe)


def test_traffic_grows_with_ranks_recomputation_and_accumulation() -> None:
    """One rank sends no tokens. Recomputing sends tokens once more, accumulation everything again."""
    recipe = load("deepseek_v3")
    alone, two, four = plan_of(recipe, 4, (1, 2, 4)).rows
    assert alone.traffic.exchanged == alone.traffic.messages == 0 < two.traffic.exchanged < four.traffic.exchanged
    assert alone.traffic.gathers > two.traffic.gathers > four.traffic.gathers > 0
    layer = next(iter(two.traffic.layers.values()))
    assert layer.rows == layer.reached / 2
    # of 4 bytes: a token out and back, and gradients; 8 gates and gradients; 8 expert numbers. Then the counts
    assert layer.bytes_per_token == pytest.approx(layer.rows * 4 * (4 * 128 + 2 * 8 + 8) + 16 / 32)
    again = RunPlanner(recipe).plan(request_for(recipe, 4, (2,), accumulate=3), "blocks").rows[0].traffic
    assert again.messages == 3 * (two.traffic.messages + 5 * 4)
    assert again.gathers == pytest.approx(3 * two.traffic.gathers)
    assert 1.4 < again.exchanged / 3 / two.traffic.exchanged < 1.6


def memory_of(weights: list[Weight], *, ep: int = 2, copies: int = 800, monkeypatch: pytest.MonkeyPatch) -> Memory:
    planner = RunPlanner(load("deepseek_v3", ["model.depth=2", "model.mtp=null"]))
    few = {**dict.fromkeys(("blocks.1.moe", "less"), USE), "less": replace(USE, tokens=9)}
    measured = Pass(saved={"blocks.0": 1000, REST: 300}, peak=5000, copies=copies, layers=few)
    planner.weights, planner.buffers, planner.mixtures = weights, 12, dict.fromkeys(few, SPEC)
    monkeypatch.setattr(planner, "measured", lambda *_: measured)
    monkeypatch.setattr(planner, "state", lambda *_: {})
    return planner.plan(replace(REQUEST, eps=(ep,)), "none").rows[0].memory


def test_every_term_of_memory_is_as_computed_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of four ranks share experts: 4 of 8, sharded over two; all else over four. fp32 with bf16 autocast."""
    reached = 2 * (1 - 4 / 56)  # of two ranks; 4 of the 56 choices of three experts miss a rank that has four
    assert memory_of(WEIGHTS, monkeypatch=monkeypatch) == Memory(
        parameters=(192 + 96 + 32 + 256 + 96) * 4 + 12,
        gradients=(192 + 96 + 256 + 96) * 4,  # the router is not trained
        optimizer=0,
        gathered=(768 + 2 * (128 + 512)) * 4,  # outside of blocks, the largest block, and the next
        gathered_gradients=(768 + 512) * 4,
        copies=800 // 2,
        activations=1000,
        outside=300,
        transient=5000 - 1300,
        exchange=round(2 * reached * 10 * 12 * 4),  # one buffer to send from, one to receive into; 48 bytes a row
    )


def test_two_blocks_are_gathered_but_no_more_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_of(WEIGHTS[:-1], monkeypatch=monkeypatch).gathered == (768 + 384 + 128 + 512) * 4
    alone = memory_of(WEIGHTS[:-1], ep=4, monkeypatch=monkeypatch)  # experts of a single rank are not gathered
    assert alone.gathered == (768 + 384 + 128) * 4 and alone.gathered_gradients == (768 + 384) * 4


def test_recomputed_copies_of_experts_are_those_of_one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a device's own experts, in bf16."""
    two = [*WEIGHTS, replace(WEIGHTS[3], name="blocks.2.moe.experts.w_up", unit=2)]
    assert memory_of(two, copies=0, monkeypatch=monkeypatch).copies == 512 * 2


def test_recompute_is_rejected_for_a_model_without_that_option() -> None:
    recipe = load("jacobs1991")
    with pytest.raises(MoekitError, match=r"Mixture has no option 'recompute'.*\n  expected no --recompute"):
        RunPlanner(recipe).plan(request_for(recipe), "blocks")


def test_tensors_too_large_to_be_counted_are_reported() -> None:
    for name in ("jacobs1991", "deepseek_v3"):
        with pytest.raises(
            MoekitError, match=r"some tensor would have 2\*\*63 bytes or more\n  expected fewer than 1000"
        ):
            plan_of(load(name), batch=10**12, sequence=10**12)
