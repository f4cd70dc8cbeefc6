"""Adapters of other libraries' layers and models, for ``--against``. None is a dependency: each is imported on demand.

The adapter of a layer runs it on the same tokens, with the same weights and routing where the library allows it; a note
says where it does not. The adapter of a model builds the library's own, with the same weights.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from torch import Tensor, nn

from moekit.contracts import Batch, ExpertBank, Model
from moekit.errors import MoekitError, nearest
from moekit.spec.recipe import Recipe
from moekit_bench.measure import Variant
from moekit_bench.workload import Workload


@dataclass(frozen=True, kw_only=True)
class PeerModel:
    """Another library's model.

    Attributes:
        name: of its row.
        model: the model to train.
        loss: the mean loss of a batch.
        note: what a reader must know to compare.
    """

    name: str
    model: nn.Module
    loss: Callable[[Batch], Tensor]
    note: str = ""


LayerAdapter = Callable[[Workload, ExpertBank], list[Variant]]
"""Gives the library's layer, once for each implementation that it has."""

ModelAdapter = Callable[[Recipe, Model], Sequence[PeerModel]]
"""Gives the library's model of a recipe with the weights of ours, once for each implementation that it has."""

LAYERS: Final = {
    "transformers": ("transformers.mixtral_experts", "transformers"),
    "st_moe_pytorch": ("layers.st_moe_pytorch", "st-moe-pytorch"),
    "megablocks": ("layers.megablocks", "megablocks"),
    "scattermoe": ("layers.scattermoe", "git+https://github.com/shawntan/scattermoe"),
}
"""By library: the function of this package that adapts its layer, and what ``pip install`` takes."""

MODELS: Final = {"transformers": ("transformers.models", "transformers")}
"""The same for whole models."""


def load(name: str) -> LayerAdapter:
    """The adapter of a library's layer. Imports the library, to check that it is there.

    Raises:
        MoekitError: there is no such adapter, or the library is not installed or does not import.
    """
    return cast(LayerAdapter, _loaded(name, LAYERS))


def load_models(name: str) -> ModelAdapter:
    """The adapter of a library's models; as ``load``."""
    return cast(ModelAdapter, _loaded(name, MODELS))


def _loaded(name: str, known: Mapping[str, tuple[str, str]]) -> Any:
    if name not in known:
        near = nearest(name, list(known))
        lines = [f"--against {name}: unknown library (known: {', '.join(known)})"]
        raise MoekitError("\n".join([*lines, *([f"  did you mean '{near}'?"] if near else [])]))
    adapter, package = known[name]
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise MoekitError(f"--against {name}: it is installed, but lacks '{error.name}': {error}") from error
        raise MoekitError(f"--against {name}: it is not installed\n  pip install {package}") from error
    except Exception as error:  # importing may fail in any way: a missing GPU, another torch
        raise MoekitError(f"--against {name}: it does not import: {type(error).__name__}: {error}") from error
    module, _, function = adapter.partition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), function)
