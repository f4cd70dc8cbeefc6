"""The memory of a planned pass, against passes with real numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moekit import load
from moekit.contracts import Batch, Source
from moekit.registry import build
from moekit.spec.recipe import Recipe
from moekit.training import LitMoE
from moekit.training.data import batch_at
from moekit_bench.saved import saved_for_backward
from moekit_plan.activations import DTYPES, REST, Pass, empty_batch, measure, run
from moekit_plan.plan import with_recompute

B, S = 2, 24
GROUPED = ["model.moe.dispatcher={use: grouped}"]


def real_pass(recipe: Recipe, precision: str, seed: int = 0) -> Pass:
    """The same pass with storage: initialised weights, random tokens."""
    torch.manual_seed(seed)
    model = build(recipe.model).to(DTYPES[precision][0])
    batch = empty_batch(recipe.model, B, S)

    def random(tokens: Tensor) -> Tensor:
        return torch.randint_like(tokens, recipe.model.vocab)  # type: ignore[attr-defined]

    source = None if batch.source is None else Source(random(batch.source.tokens), batch.source.valid)
    return run(
        model,
        build(recipe.objective),
        Batch(random(batch.inputs), random(batch.targets), batch.valid, source=source),
        precision,
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("name", ["deepseek_v3", "switch", "gshard", "deepseek_v2"])
def test_a_pass_without_storage_takes_the_bytes_of_a_real_one(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly: by block, at the peak, and autocast's copies; without ``textbook``, which is for small layers."""
    monkeypatch.setattr("moekit_dispatchers.auto.module.TEXTBOOK_UP_TO", 0)
    recipe = load(name, GROUPED if name.startswith("deepseek_v3") else [])
    planned = measure(recipe.model, recipe.objective, batch=B, sequence=S, precision=precision)
    found = real_pass(recipe, precision)
    assert planned == found
    assert planned.peak > planned.activations > 0 and REST in planned.saved
    assert (planned.copies > 0) == (precision == "bf16-mixed")
    sent = 4 if precision == "32-true" else 2
    assert all((use.element_bytes, use.out_element_bytes) == (sent, sent) for use in planned.layers.values())


@pytest.mark.parametrize("name", ["deepseek_v3", "switch"])
def test_a_plan_is_near_what_a_training_batch_saves(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 1 %, for the recipe's own data: the batch itself and padding masks are not planned.

    Neither is what attention keeps on a CPU alone, for texts of up to 256 tokens.
    """
    monkeypatch.setattr("moekit_models.attending.MOST", 0)
    recipe = load(name, GROUPED if name.startswith("deepseek_v3") else [])
    module = LitMoE(recipe)
    batch = batch_at(module.prepare(), seed=0, step=0)

    def forward() -> Tensor:
        output = module.model.on(batch)
        return module.objective(output, batch).total + sum(r.loss() for r in output.reports.values())

    saved = saved_for_backward(forward, [*module.model.parameters(), *module.model.buffers()])
    B, S = batch.inputs.shape
    if batch.source is None:
        planned = measure(recipe.model, recipe.objective, batch=B, sequence=S, precision="32-true")
    else:  # the plan assumes sources as long as targets
        S = batch.source.tokens.shape[1]
        tokens = torch.randint(0, recipe.model.vocab, (B, S))  # type: ignore[attr-defined]
        valid = torch.ones(B, S, dtype=torch.bool)
        batch = Batch(tokens, tokens, valid, source=Source(tokens, valid))
        saved = saved_for_backward(forward, [*module.model.parameters(), *module.model.buffers()])
        planned = measure(recipe.model, recipe.objective, batch=B, sequence=S, precision="32-true")
    assert planned.activations == pytest.approx(saved.bytes, rel=0.01)


@pytest.mark.parametrize("name", ["deepseek_v3", "switch"])
def test_recomputed_activations_are_not_saved(name: str) -> None:
    """Recomputing blocks saves least; their activations are then alive one block at a time."""
    recipe = load(name, GROUPED if name.startswith("deepseek_v3") else [])
    passes = {
        policy: measure(
            with_recompute(recipe.model, policy), recipe.objective, batch=B, sequence=S, precision="bf16-mixed"
        )
        for policy in ("none", "experts", "blocks")
    }
    none, experts, blocks = passes["none"], passes["experts"], passes["blocks"]
    assert none.activations > experts.activations > blocks.activations
    assert none.peak > experts.peak > blocks.peak
    largest = max(size for place, size in none.saved.items() if place != REST)
    assert blocks.peak - blocks.activations > 0.5 * largest
    assert none.copies > 0 == experts.copies == blocks.copies
    again = replace(recipe, model=with_recompute(recipe.model, "blocks"))
    assert blocks == real_pass(again, "bf16-mixed")


@pytest.mark.parametrize("dispatcher", ["auto", "loop", "fused"])
def test_a_dispatcher_that_needs_real_loads_is_planned_as_grouped(dispatcher: str) -> None:
    passes = []
    for use in (dispatcher, "grouped"):
        recipe = load("deepseek_v3", [f"model.moe.dispatcher={{use: {use}}}"])
        passes.append(measure(recipe.model, recipe.objective, batch=4, sequence=128, precision="32-true"))
    assert passes[0].substitute == "grouped" and passes[1].substitute == ""
    assert replace(passes[0], substitute="") == passes[1]


def test_a_model_without_blocks_saves_outside_of_them() -> None:
    recipe = load("jacobs1991")
    found = measure(recipe.model, recipe.objective, batch=5, sequence=1, precision="32-true")
    assert set(found.saved) == {REST}
    assert found.layers["moe"].tokens == 5 and found.layers["moe"].dim == 2


def test_an_empty_batch_of_cases_has_the_models_widths() -> None:
    batch = empty_batch(load("jacobs1991").model, 3, 2)
    assert isinstance(batch, Batch) and batch.inputs.shape == (6, 2)
