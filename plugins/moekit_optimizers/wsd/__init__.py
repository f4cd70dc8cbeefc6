"""Warm-up, stable, decay. Source: Hu et al., MiniCPM (2024), section 4; the linear decay from Hägele et al. (2024)."""

from __future__ import annotations

from dataclasses import dataclass

from moekit.component import Component
from moekit.spec.fields import option
from moekit.spec.kinds import ScheduleSpec


@dataclass(frozen=True, kw_only=True)
class WSD(ScheduleSpec):
    """Options of the warm-up, stable, decay schedule."""

    warmup: int = option(0, "steps of linear rise to the full rate", ge=0)
    decay: float = option(0.2, "length of the decay, as a fraction of the run", ge=0, le=1)
    final: float = option(0.1, "rate at the last step, as a fraction of the full rate", ge=0, le=1)


COMPONENT = Component(
    name="wsd",
    spec=WSD,
    target="moekit_optimizers.wsd.module:wsd",
    summary="warm-up, then the full rate, then a linear decay to a final one",
    paper="Hu et al. 2024, arXiv:2404.06395; Hägele et al. 2024, arXiv:2405.18392",
)
