"""Half a cosine down from the full rate. Source: Loshchilov and Hutter, SGDR (2017), equation 5, without restarts."""

from __future__ import annotations

from dataclasses import dataclass

from moekit.component import Component
from moekit.spec.fields import option
from moekit.spec.kinds import ScheduleSpec


@dataclass(frozen=True, kw_only=True)
class Cosine(ScheduleSpec):
    """Options of the cosine schedule."""

    warmup: int = option(0, "steps of linear rise to the full rate", ge=0)
    final: float = option(0.1, "rate at the last step, as a fraction of the full rate", ge=0, le=1)


COMPONENT = Component(
    name="cosine",
    spec=Cosine,
    target="moekit_optimizers.cosine.module:cosine",
    summary="half a cosine from the full rate to a final one, after a warm-up",
    paper="Loshchilov and Hutter 2017, arXiv:1608.03983",
)
