"""Other libraries' layers, for ``--against``. None is a dependency: each is imported when it is asked for.

An adapter is a file with ``variants(work, experts)``: the library's layer on the same tokens, with the same weights
and the same routing where the library lets them in, and a note where it does not.
"""

from __future__ import annotations

import importlib
from typing import Final, Protocol, cast

from moekit.bench.timing import Variant
from moekit.bench.work import Work
from moekit.contracts import ExpertBank
from moekit.errors import MoekitError, nearest


class Peer(Protocol):
    """What an adapter's file holds."""

    def variants(self, work: Work, experts: ExpertBank) -> list[Variant]:
        """The library's ways of running the layer."""


PEERS: Final = {
    "transformers": ("mixtral_experts", "transformers"),
    "st_moe_pytorch": ("st_moe", "st-moe-pytorch"),
    "megablocks": ("megablocks_dmoe", "megablocks"),
    "scattermoe": ("scattermoe_glu", "git+https://github.com/shawntan/scattermoe"),
}
"""The adapter's file, and what ``pip install`` takes, by the name of the library."""


def load(name: str) -> Peer:
    """The adapter of a library, whose module is imported to see that it is there.

    Raises:
        MoekitError: no adapter has this name, or the library is not installed or does not import.
    """
    if name not in PEERS:
        near = nearest(name, list(PEERS))
        lines = [f"--against {name}: no such peer (peers: {', '.join(PEERS)})"]
        raise MoekitError("\n".join([*lines, *([f"  did you mean '{near}'?"] if near else [])]))
    file, package = PEERS[name]
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise MoekitError(f"--against {name}: it is installed, but lacks '{error.name}': {error}") from error
        raise MoekitError(f"--against {name}: it is not installed\n  pip install {package}") from error
    except Exception as error:  # whatever its import runs into: a missing GPU, another torch
        raise MoekitError(f"--against {name}: it does not import: {type(error).__name__}: {error}") from error
    return cast(Peer, importlib.import_module(f"moekit.bench.peers.{file}"))
