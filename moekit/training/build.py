"""A recipe's model as a strategy lays it out: whole, or in shards; compiled where the recipe says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch

from moekit.contracts import Model
from moekit.errors import Problem, SpecError
from moekit.parallel.deferred_init import DeferredInit, defer_init
from moekit.parallel.strategy import ShardedStrategy, with_expert_parallel
from moekit.registry import build
from moekit.seeds import seed_torch
from moekit.spec.recipe import Recipe, plural


def build_model(recipe: Recipe) -> Model:
    """The recipe's model under the recipe's seed, whole, on the CPU in fp32."""
    model: Model = build_seeded(recipe.model, recipe.seed)
    return model


def build_unsharded(recipe: Recipe, strategy: ShardedStrategy) -> tuple[Model, DeferredInit]:
    """The same model as it is before ``strategy.shard``: of its experts only those of this rank; and what to draw then.

    Its matrices have no memory yet, unless it draws them in another way than by ``moekit.weights.init_weights``: such
    a model is built whole, on every rank.
    """
    spec = with_expert_parallel(recipe, strategy.layout).model
    with defer_init() as waiting:
        model: Model = build_seeded(spec, recipe.seed)
    if not waiting.covers(model):
        model, waiting = build_seeded(spec, recipe.seed), DeferredInit()
    return model, waiting


def build_seeded(spec: Any, seed: int) -> Any:
    """Builds a spec with torch's generator at ``seed``, in fp32, and puts both back."""
    with torch.random.fork_rng(devices=[]), _fp32():
        seed_torch(seed)
        return build(spec)


def compile_parts(model: Model) -> None:
    """Has ``torch.compile`` take each part of the model's stack, in place; a model without a stack as a whole."""
    for part in model.stack() or [model]:
        part.compile()


@contextmanager
def _fp32() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


FOR_A_RUN = ("objective", "data", "optimizer")
"""Slots that a recipe needs for a run, and not only to be a module in somebody's own code."""


COUNTED = "without data it is there to be read and counted: moekit params {}"


def check_trainable(recipe: Recipe, needs: Sequence[str] = ("objective", "optimizer")) -> None:
    """Refuses a recipe that only describes a model.

    Args:
        recipe: what is to be trained.
        needs: slots of it that must be filled.

    Raises:
        SpecError: one of them is empty.
    """
    missing = [slot for slot in needs if getattr(recipe, slot) is None]
    if missing:
        raise SpecError(
            Problem(
                what=f"a recipe without {slot} cannot be trained",
                at=slot,
                list_with=f"moekit ls {plural(slot)}",
                notes=(COUNTED.format(recipe.name or "RECIPE"),) if slot == "data" else (),
            )
            for slot in missing
        )


def dense_recipe(recipe: Recipe) -> Recipe | None:
    """The recipe of the dense model to compare with: same data, seed, steps and schedule. None where there is none.

    Raises:
        SpecError: ``compare.lr`` is given, but the optimizer has no ``lr``.
    """
    assert recipe.compare is not None
    twin = recipe.model.dense_baseline()
    if twin is None:
        return None
    optimizer = recipe.optimizer
    if recipe.compare.lr is not None and optimizer is not None:
        if "lr" not in {f.name for f in fields(optimizer)}:  # type: ignore[arg-type]
            raise SpecError([Problem(what="the optimizer has no option 'lr' to set", at="compare.lr")])
        optimizer = replace(optimizer, lr=recipe.compare.lr)  # type: ignore[type-var]
    return replace(recipe, model=twin, optimizer=optimizer, compare=None, stop=None)
