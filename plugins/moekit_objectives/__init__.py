"""First-party objectives: next-token prediction, and the errors of 1991."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl
from moekit.lazy import from_stub

MOEKIT_API = 2
__getattr__, __dir__, __all__ = from_stub(__name__, __file__)


@hookimpl
def moekit_components() -> list[Component]:
    """The components of this plugin."""
    return [
        Component(
            kind="objective",
            name="causal_lm",
            spec="moekit_objectives.causal_lm:CausalLM",
            target="moekit_objectives.causal_lm.module:CausalLMObjective",
            summary="cross entropy of the next token, and of later ones under multi-token prediction",
            paper="DeepSeek-V3 2024 (multi-token prediction)",
        ),
        Component(
            kind="objective",
            name="competitive",
            spec="moekit_objectives.competitive:Competitive",
            target="moekit_objectives.competitive.module:CompetitiveObjective",
            summary="the errors of 1991, under which experts cooperate or compete for cases",
            paper="Jacobs et al. 1991, eqs 1.1 to 1.3",
        ),
        Component(
            kind="objective",
            name="squared_error",
            spec="moekit_objectives.squared_error:SquaredError",
            target="moekit_objectives.squared_error.module:SquaredErrorObjective",
            summary="half the squared error of the output",
            paper="Rumelhart et al. 1986",
        ),
    ]
