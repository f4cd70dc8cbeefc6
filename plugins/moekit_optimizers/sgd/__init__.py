"""Plain gradient descent, with momentum where asked. Source: Robbins and Monro (1951); Polyak (1964) for momentum."""

from __future__ import annotations

from dataclasses import dataclass

from moekit.component import Component
from moekit.spec.fields import option
from moekit.spec.kinds import OptimizerSpec


@dataclass(frozen=True, kw_only=True)
class SGD(OptimizerSpec):
    """Options of gradient descent: what the mixtures of 1991 were trained with."""

    lr: float = option(0.1, "learning rate at the schedule's peak", gt=0)
    momentum: float = option(0.0, "share of the last move that is kept", ge=0, lt=1)


COMPONENT = Component(
    name="sgd",
    spec=SGD,
    target="moekit_optimizers.sgd.module:sgd",
    summary="gradient descent, with momentum where asked",
    paper="Robbins and Monro 1951",
)
