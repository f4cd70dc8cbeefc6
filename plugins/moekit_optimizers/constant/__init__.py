"""A constant rate after a linear warm-up. Source of the warm-up: Goyal et al. 2017, section 2.2 ("gradual warmup")."""

from __future__ import annotations

from dataclasses import dataclass

from moekit.component import Component
from moekit.spec.fields import option
from moekit.spec.kinds import ScheduleSpec


@dataclass(frozen=True, kw_only=True)
class Constant(ScheduleSpec):
    """Options of the constant schedule."""

    warmup: int = option(0, "steps of linear rise to the full rate", ge=0)


COMPONENT = Component(
    name="constant",
    spec=Constant,
    target="moekit_optimizers.constant.module:constant",
    summary="the full rate throughout, after a warm-up",
    paper="Goyal et al. 2017, arXiv:1706.02677 (warm-up)",
)
