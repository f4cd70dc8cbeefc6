"""Down by a factor at given shares of the run. Source: DeepSeek LLM (2024), section 2.3."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from moekit.component import Component
from moekit.spec.fields import option
from moekit.spec.kinds import ScheduleSpec


@dataclass(frozen=True, kw_only=True)
class Steps(ScheduleSpec):
    """Options of the step schedule."""

    warmup: int = option(0, "steps of linear rise to the full rate", ge=0)
    at: list[float] = option([0.8, 0.9], "shares of the run after which the rate falls", gt=0, lt=1)
    gamma: float = option(0.316, "what the rate is multiplied by, each time", gt=0, le=1)

    def check(self) -> Iterable[str]:
        """The shares rise."""
        if any(a >= b for a, b in itertools.pairwise(self.at)):
            yield f"at={self.at!r} must be shares of the run that rise, such as [0.8, 0.9]"


COMPONENT = Component(
    name="steps",
    spec=Steps,
    target="moekit_optimizers.steps.module:steps",
    summary="the full rate, multiplied by a factor at shares of the run, after a warm-up",
    paper="DeepSeek-AI 2024, arXiv:2401.02954",
)
