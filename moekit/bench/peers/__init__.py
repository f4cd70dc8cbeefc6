"""Other libraries' layers and models, for ``--against``. None is a dependency: each is imported when it is asked for.

An adapter of layers is a file with ``variants(work, experts)``: the library's layer on the same tokens, with the same
weights and the same routing where the library lets them in, and a note where it does not. An adapter of models is a
file with ``models(recipe)``: the library's own model of a recipe's sizes.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from moekit.bench.timing import Variant
from moekit.bench.work import Work
from moekit.contracts import ExpertBank
from moekit.errors import MoekitError, nearest
from moekit.spec.recipe import Recipe

if TYPE_CHECKING:
    from moekit.bench.plain_loop import PeerModel  # imports Lightning, which layers do not need


class Peer(Protocol):
    """What an adapter's file holds."""

    def variants(self, work: Work, experts: ExpertBank) -> list[Variant]:
        """The library's ways of running the layer."""


class ModelPeer(Protocol):
    """What the file of an adapter of models holds."""

    def models(self, recipe: Recipe) -> Sequence[PeerModel]:
        """The library's model of a recipe's sizes, by each of its ways of running it."""


PEERS: Final = {
    "transformers": ("mixtral_experts", "transformers"),
    "st_moe_pytorch": ("st_moe", "st-moe-pytorch"),
    "megablocks": ("megablocks_dmoe", "megablocks"),
    "scattermoe": ("scattermoe_glu", "git+https://github.com/shawntan/scattermoe"),
}
"""The adapter's file, and what ``pip install`` takes, by the name of the library."""

MODELS: Final = {"transformers": ("transformers_models", "transformers")}
"""The same, of libraries with whole models."""


def load(name: str) -> Peer:
    """The adapter of a library's layer, whose module is imported to see that it is there.

    Raises:
        MoekitError: no adapter has this name, or the library is not installed or does not import.
    """
    return cast(Peer, _loaded(name, PEERS))


def load_models(name: str) -> ModelPeer:
    """The adapter of a library's models; as ``load``."""
    return cast(ModelPeer, _loaded(name, MODELS))


def _loaded(name: str, known: Mapping[str, tuple[str, str]]) -> Any:
    if name not in known:
        near = nearest(name, list(known))
        lines = [f"--against {name}: no such peer (peers: {', '.join(known)})"]
        raise MoekitError("\n".join([*lines, *([f"  did you mean '{near}'?"] if near else [])]))
    file, package = known[name]
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise MoekitError(f"--against {name}: it is installed, but lacks '{error.name}': {error}") from error
        raise MoekitError(f"--against {name}: it is not installed\n  pip install {package}") from error
    except Exception as error:  # whatever its import runs into: a missing GPU, another torch
        raise MoekitError(f"--against {name}: it does not import: {type(error).__name__}: {error}") from error
    return importlib.import_module(f"moekit.bench.peers.{file}")
