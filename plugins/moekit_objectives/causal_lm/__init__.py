"""Next-token prediction, with the terms of multi-token prediction where the model gives them.

Source: DeepSeek-V3 2024 (section 2.2, eqs 24 and 25; arXiv 2412.19437). Their ``L_k`` sums over the ``T - k``
positions that have a token k places past the next, yet divides by T; so does this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moekit.component import Component
from moekit.spec.fields import option
from moekit.spec.kinds import ObjectiveSpec


@dataclass(frozen=True, kw_only=True)
class CausalLM(ObjectiveSpec):
    """Options of next-token prediction."""

    takes: ClassVar[frozenset[str]] = frozenset({"next_token"})
    mtp_weight: float = option(0.3, "weight of the mean of the multi-token losses (lambda); 0 leaves them out", ge=0)


COMPONENT = Component(
    name="causal_lm",
    spec=CausalLM,
    target="moekit_objectives.causal_lm.module:CausalLMObjective",
    summary="cross entropy of the next token, and of later ones under multi-token prediction",
    paper="DeepSeek-V3 2024 (multi-token prediction)",
)
