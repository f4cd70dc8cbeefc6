"""A recipe's model as a strategy lays it out: whole, or in shards; compiled where the recipe says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.fsdp import FSDPModule

from moekit.contracts import Data, Model
from moekit.parallel.gathering import gather
from moekit.parallel.sharding import tensors_of
from moekit.parallel.strategy import ShardedStrategy, laid_out
from moekit.registry import build
from moekit.spec.recipe import Recipe

if TYPE_CHECKING:
    from moekit.training.built import Built


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


def whole_model(module: Built) -> Model | None:
    """The trained model, whole, for whoever measures or draws: on rank 0; None elsewhere, and where nobody does.

    A model in shards is put together on the CPU of rank 0, tensor by tensor. Collective.
    """
    if not isinstance(module.model, FSDPModule):
        return module.model
    data = module.data
    if data is None or (type(data).scores is Data.scores and type(data).picture is Data.picture):
        return None
    tensors = gather(tensors_of(module.model))
    if tensors is None:
        return None
    model = build_model(module.recipe)
    model.load_state_dict(tensors, assign=True)
    return model.train(module.model.training)


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
