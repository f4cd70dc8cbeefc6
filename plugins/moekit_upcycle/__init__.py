"""Mixtures made from dense models that exist: the same function at step 0, or nearly, and more to learn.

Source: Komatsuzaki et al. 2022, Sparse Upcycling (arXiv 2212.05055); He et al. 2024, Upcycling Large Language Models
into Mixture of Experts (arXiv 2410.07524), for shards; Nakamura et al. 2025, Drop-Upcycling (arXiv 2502.19261), for
fresh units; Sukhbaatar et al. 2024, Branch-Train-MiX (arXiv 2403.07816), for several models. Shards multiply the last
matrix alone: a cube root in each of three, as in Megatron's code, is not exact where an activation is between them.
"""

from __future__ import annotations

from moekit.component import Verb
from moekit.hookspecs import hookimpl

MOEKIT_API = 2


@hookimpl
def moekit_verbs() -> list[Verb]:
    """The verb of this plugin."""
    return [Verb(name="upcycle", target="moekit_upcycle.cli", summary="make a mixture from a dense run")]
