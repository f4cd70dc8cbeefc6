"""A recipe's model as a strategy lays it out: whole, or in shards; compiled where the recipe says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from moekit.contracts import Model
from moekit.parallel.strategy import ShardedStrategy, laid_out
from moekit.registry import build
from moekit.spec.recipe import Recipe


def build_model(recipe: Recipe, strategy: ShardedStrategy | None = None) -> Model:
    """The recipe's model under the recipe's seed, on the CPU in fp32; of its experts only those of this rank.

    Its weights are the same in every layout; so they are drawn before they are converted to another dtype.

    Args:
        recipe: what to build.
        strategy: the layout; None for a whole model. It is not cut up here.
    """
    model: Model = build_seeded((recipe if strategy is None else laid_out(recipe, strategy.layout)).model, recipe.seed)
    return model


def build_seeded(spec: Any, seed: int) -> Any:
    """Builds a spec with torch's generator at ``seed``, in fp32, and puts both back."""
    with torch.random.fork_rng(devices=[]), _fp32():
        torch.manual_seed(seed)
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
