"""Building the model of a recipe, and the recipe of its dense baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, cast

import torch

from moekit.contracts import Model
from moekit.errors import Problem, SpecError
from moekit.registry import build, current
from moekit.seeds import seed_torch
from moekit.spec.recipe import Recipe

RUN_SLOTS = ("objective", "data", "optimizer")
"""Slots that a run needs; a ``LitMoE`` in the user's own code may get its data elsewhere."""


def build_model(recipe: Recipe) -> Model:
    """The recipe's model under the recipe's seed, whole, on the CPU, in fp32."""
    model: Model = build_seeded(recipe.model, recipe.seed)
    return model


def build_seeded(spec: Any, seed: int) -> Any:
    """Builds a spec in fp32 with torch's generator at ``seed``, then restores the default dtype and the generator."""
    with torch.random.fork_rng(devices=[]), _fp32():
        seed_torch(seed)
        return build(spec)


def compile_parts(model: Model) -> None:
    """Compiles each block of the model's stack with ``torch.compile``, in place; without a stack, the whole model."""
    for block in model.stack() or [model]:
        block.compile()


@contextmanager
def _fp32() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check_trainable(recipe: Recipe, needs: Sequence[str] = ("objective", "optimizer")) -> None:
    """Rejects a recipe that only describes a model.

    Raises:
        SpecError: a slot in ``needs`` is empty.
    """
    note = f"without data it can only be read and counted: moekit params {recipe.name or 'RECIPE'}"
    problems = [
        Problem(
            what=f"a recipe without {slot} cannot be trained",
            at=slot,
            list_with=f"moekit ls {current().kind(slot).plural}",
            notes=(note,) if slot == "data" else (),
        )
        for slot in needs
        if getattr(recipe, slot) is None
    ]
    if problems:
        raise SpecError(problems)


def dense_recipe(recipe: Recipe) -> Recipe | None:
    """The recipe of the dense baseline: same data, seed, steps and schedule. None for a model without one.

    Raises:
        SpecError: ``compare.lr`` is given, but the optimizer has no ``lr``.
    """
    assert recipe.compare is not None
    model = recipe.model.dense_baseline()
    if model is None:
        return None
    optimizer = recipe.optimizer
    if recipe.compare.lr is not None and optimizer is not None:
        if "lr" not in {f.name for f in fields(optimizer)}:
            raise SpecError([Problem(what="the optimizer has no option 'lr' to set", at="compare.lr")])
        optimizer = replace(cast(Any, optimizer), lr=recipe.compare.lr)
    return replace(recipe, model=model, optimizer=optimizer, compare=None, stop=None)
