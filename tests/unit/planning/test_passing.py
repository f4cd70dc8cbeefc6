"""What a plan says that a pass keeps, against passes that really run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moekit import load
from moekit.bench.memory import saved_for_backward
from moekit.contracts import Batch, Source
from moekit.planning.activations import DTYPES, REST, Pass, measure, run
from moekit.planning.empty_batch import empty_batch
from moekit.planning.plan import with_recompute
from moekit.registry import build
from moekit.spec.recipe import Recipe
from moekit.training import LitMoE
from moekit.training.data import batch_at

B, S = 2, 24
GROUPED = ["model.moe.dispatcher={use: grouped}"]


def really(recipe: Recipe, precision: str, seed: int = 0) -> Pass:
    """The same pass on numbers: drawn weights, drawn tokens."""
    torch.manual_seed(seed)
    model = build(recipe.model).to(DTYPES[precision][0])
    batch = empty_batch(recipe.model, B, S)

    def drawn(tokens: Tensor) -> Tensor:
        return torch.randint_like(tokens, recipe.model.vocab)  # type: ignore[attr-defined]

    source = None if batch.source is None else Source(drawn(batch.source.tokens), batch.source.valid)
    return run(
        model,
        build(recipe.objective),
        Batch(drawn(batch.inputs), drawn(batch.targets), batch.valid, source=source),
        precision,
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("name", ["deepseek_v3", "switch", "gshard", "deepseek_v2"])
def test_without_storage_as_with_numbers(name: str, precision: str) -> None:
    """To the byte: by block, at the peak, and what autocast copies."""
    recipe = load(name, GROUPED if name.startswith("deepseek_v3") else [])
    planned = measure(recipe.model, recipe.objective, batch=B, sequence=S, precision=precision)
    found = really(recipe, precision)
    assert planned == found
    assert planned.peak > planned.activations > 0 and REST in planned.kept
    assert (planned.copies > 0) == (precision == "bf16-mixed")
    travel = 4 if precision == "32-true" else 2
    assert all((use.element, use.out_element) == (travel, travel) for use in planned.layers.values())


@pytest.mark.parametrize("name", ["deepseek_v3", "switch"])
def test_a_training_batch(name: str) -> None:
    """Of a recipe's own data, counted by other code: within a hundredth, for the batch itself and padding's masks."""
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
    else:  # the plan takes source and target to be of one length
        S = batch.source.tokens.shape[1]
        tokens = torch.randint(0, recipe.model.vocab, (B, S))  # type: ignore[attr-defined]
        valid = torch.ones(B, S, dtype=torch.bool)
        batch = Batch(tokens, tokens, valid, source=Source(tokens, valid))
        saved = saved_for_backward(forward, [*module.model.parameters(), *module.model.buffers()])
        planned = measure(recipe.model, recipe.objective, batch=B, sequence=S, precision="32-true")
    assert planned.activations == pytest.approx(saved.bytes, rel=0.01)


@pytest.mark.parametrize("name", ["deepseek_v3", "switch"])
def test_what_is_computed_again_is_not_kept(name: str) -> None:
    """Blocks keep least, and then their activations live one block at a time."""
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
    largest = max(size for place, size in none.kept.items() if place != REST)
    assert blocks.peak - blocks.activations > 0.5 * largest
    assert none.copies > 0 == experts.copies == blocks.copies
    again = replace(recipe, model=with_recompute(recipe.model, "blocks"))
    assert blocks == really(again, "bf16-mixed")


@pytest.mark.parametrize("dispatcher", ["auto", "loop", "fused"])
def test_a_dispatcher_that_reads_loads_is_planned_as_grouped(dispatcher: str) -> None:
    """Whatever ``auto`` would choose for so few tokens."""
    passes = []
    for use in (dispatcher, "grouped"):
        recipe = load("deepseek_v3", [f"model.moe.dispatcher={{use: {use}}}"])
        passes.append(measure(recipe.model, recipe.objective, batch=4, sequence=128, precision="32-true"))
    assert passes[0].instead == "grouped" and passes[1].instead == ""
    assert replace(passes[0], instead="") == passes[1]


def test_cases_without_a_stack() -> None:
    recipe = load("jacobs1991")
    found = measure(recipe.model, recipe.objective, batch=5, sequence=1, precision="32-true")
    assert set(found.kept) == {REST}
    assert found.layers["moe"].tokens == 5 and found.layers["moe"].dim == 2
