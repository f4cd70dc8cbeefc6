"""Adapters of other libraries' layers and models, for ``--against``. None is a dependency: each is imported on demand.

An adapter is a file named for the library. Its function ``variants(work, experts)`` gives the library's layer on the
same tokens, with the same weights and routing where the library allows it, and a note where it does not. A function
``models(recipe)`` gives the library's own model of a recipe's sizes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from torch import Tensor, nn

from moekit.bench.measure import Variant
from moekit.bench.workload import Workload
from moekit.contracts import Batch, ExpertBank
from moekit.errors import MoekitError, nearest
from moekit.spec.recipe import Recipe


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


class Peer(Protocol):
    """An adapter of a library's layer."""

    def variants(self, work: Workload, experts: ExpertBank) -> list[Variant]:
        """The layer, once for each implementation that the library has."""


class ModelPeer(Protocol):
    """An adapter of a library's models."""

    def models(self, recipe: Recipe) -> Sequence[PeerModel]:
        """The model of a recipe's sizes, once for each implementation that the library has."""


PEERS: Final = {
    "transformers": "transformers",
    "st_moe_pytorch": "st-moe-pytorch",
    "megablocks": "megablocks",
    "scattermoe": "git+https://github.com/shawntan/scattermoe",
}
"""Libraries with an adapter, each with what ``pip install`` takes."""

MODEL_PEERS: Final = {"transformers": PEERS["transformers"]}
"""Those whose adapter has ``models``."""


def load(name: str) -> Peer:
    """The adapter of a library's layer. Imports the library, to check that it is there.

    Raises:
        MoekitError: there is no such adapter, or the library is not installed or does not import.
    """
    return cast(Peer, _loaded(name, PEERS))


def load_models(name: str) -> ModelPeer:
    """The adapter of a library's models; as ``load``."""
    return cast(ModelPeer, _loaded(name, MODEL_PEERS))


def require_gpu(work: Workload, name: str) -> None:
    """Checks that the benchmark runs on a GPU.

    Raises:
        MoekitError: it does not.
    """
    if work.x_TD.device.type != "cuda":
        raise MoekitError(f"--against {name}: it runs on GPUs alone; add --device cuda")


def _loaded(name: str, known: Mapping[str, str]) -> Any:
    if name not in known:
        near = nearest(name, list(known))
        lines = [f"--against {name}: unknown library (known: {', '.join(known)})"]
        raise MoekitError("\n".join([*lines, *([f"  did you mean '{near}'?"] if near else [])]))
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise MoekitError(f"--against {name}: it is installed, but lacks '{error.name}': {error}") from error
        raise MoekitError(f"--against {name}: it is not installed\n  pip install {known[name]}") from error
    except Exception as error:  # importing may fail in any way: a missing GPU, another torch
        raise MoekitError(f"--against {name}: it does not import: {type(error).__name__}: {error}") from error
    return importlib.import_module(f"moekit.bench.peers.{name}")
