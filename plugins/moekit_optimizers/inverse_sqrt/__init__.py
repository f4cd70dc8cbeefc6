"""One over the square root of the step. Source: Vaswani et al., "Attention is all you need" (2017), equation 3."""

from __future__ import annotations

from dataclasses import dataclass

from moekit.component import Component
from moekit.spec.fields import option
from moekit.spec.kinds import ScheduleSpec


@dataclass(frozen=True, kw_only=True)
class InverseSqrt(ScheduleSpec):
    """Options of the inverse square root schedule."""

    warmup: int = option(0, "steps of linear rise to the full rate, from where it falls", ge=0)


COMPONENT = Component(
    name="inverse_sqrt",
    spec=InverseSqrt,
    target="moekit_optimizers.inverse_sqrt.module:inverse_sqrt",
    summary="a warm-up, then down with one over the square root of the step",
    paper="Vaswani et al. 2017, arXiv:1706.03762",
)
