"""Papers' claims, measured: ``moekit reproduce``, and the kind ``claim``, by which any plugin adds papers of its own.

A claim's spec holds the sizes of its experiment, and its target returns a ``Study``: which models are trained, and what
must come out of them. ``docs/ledger.md`` is what the command wrote here.
"""

from __future__ import annotations

from moekit.component import Component, Kind, Verb
from moekit.hookspecs import hookimpl
from moekit.lazy import from_stub

MOEKIT_API = 2
__getattr__, __dir__, __all__ = from_stub(__name__, __file__)


@hookimpl
def moekit_kinds() -> list[Kind]:
    """The kind of this plugin."""
    return [
        Kind(
            name="claim",
            spec="moekit_reproduce.study:ClaimSpec",
            summary="what a paper claims, as a small experiment that moekit reproduce runs",
            makes="moekit_reproduce.study:Study",
        )
    ]


def _claim(name: str, spec: str, summary: str, paper: str) -> Component:
    module = f"moekit_reproduce.papers.{name}"
    return Component(
        kind="claim", name=name, spec=f"{module}:{spec}", target=f"{module}:study", summary=summary, paper=paper
    )


@hookimpl
def moekit_components() -> list[Component]:
    """The claims of this plugin, oldest paper first."""
    return [
        _claim("jacobs1991", "Jacobs1991", "epochs to a criterion, active experts", "Jacobs et al. 1991"),
        _claim(
            "shazeer2017", "Shazeer2017", "two balance losses in six settings", "Shazeer et al. 2017, arXiv:1701.06538"
        ),
        _claim(
            "gshard",
            "GShard",
            "capacity and random second expert against none",
            "Lepikhin et al. 2020, arXiv:2006.16668",
        ),
        _claim("switch", "Switch", "steps to the dense model's loss, capacity", "Fedus et al. 2021, arXiv:2101.03961"),
        _claim("glam", "GLaM", "against a dense model over lengths of training", "Du et al. 2021, arXiv:2112.06905"),
        _claim(
            "st_moe", "STMoE", "z-loss in bf16, which parameters to fine-tune", "Zoph et al. 2022, arXiv:2202.08906"
        ),
        _claim("deepseek_moe", "DeepSeekMoE", "fine-grained and shared experts", "Dai et al. 2024, arXiv:2401.06066"),
        _claim(
            "deepseek_v2", "DeepSeekV2", "bytes of the cache, limits of devices", "DeepSeek-AI 2024, arXiv:2405.04434"
        ),
        _claim("aux_free", "AuxFree", "bias against loss over coefficients", "Wang et al. 2024, arXiv:2408.15664"),
        _claim("deepseek_v3", "DeepSeekV3", "balance in three ways, MTP", "DeepSeek-AI 2024, arXiv:2412.19437"),
    ]


@hookimpl
def moekit_verbs() -> list[Verb]:
    """The verb of this plugin."""
    summary = "measure what a paper claims, over several seeds, and keep a ledger"
    return [Verb(name="reproduce", target="moekit_reproduce.cli", summary=summary)]
