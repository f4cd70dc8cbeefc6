"""Mixtures made from models that exist: from dense ones, the same function at step 0, or nearly; or by pruning.

Source: Komatsuzaki et al. 2022, Sparse Upcycling (arXiv 2212.05055); He et al. 2024, Upcycling Large Language Models
into Mixture of Experts (arXiv 2410.07524), for shards; Nakamura et al. 2025, Drop-Upcycling (arXiv 2502.19261), for
units initialised anew; Sukhbaatar et al. 2024, Branch-Train-MiX (arXiv 2403.07816), for several models. Shards multiply
the last matrix alone: a cube root in each of three, as in Megatron's code, is not exact where an activation is between
them.
"""

from __future__ import annotations

from moekit.component import Component, Verb
from moekit.hookspecs import hookimpl
from moekit.lazy import from_stub

MOEKIT_API = 2
__getattr__, __dir__, __all__ = from_stub(__name__, __file__)


@hookimpl
def moekit_components() -> list[Component]:
    """The components of this plugin."""
    return [
        Component(
            kind="converter",
            name="upcycle",
            spec="moekit_upcycle.upcycle:Upcycle",
            target="moekit_upcycle.upcycle.module:UpcycleConverter",
            summary="a mixture from a dense model: copies or shards of its layers; or from several",
            paper="Komatsuzaki et al. 2022 (arXiv 2212.05055)",
        ),
    ]


@hookimpl
def moekit_verbs() -> list[Verb]:
    """The verbs of this plugin."""
    return [
        Verb(name="upcycle", target="moekit_upcycle.cli", summary="make a mixture from a dense run"),
        Verb(name="prune", target="moekit_upcycle.prune_cli", summary="remove the experts that contribute least"),
    ]
