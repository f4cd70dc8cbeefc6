"""Gradient descent, with optional momentum. Source: Robbins and Monro (1951); Polyak (1964) for momentum."""

from typing import ClassVar

from moekit.spec.fields import option
from moekit.spec.kinds import OptimizerSpec


class SGD(OptimizerSpec):
    """Options of gradient descent, which trained the mixtures of 1991."""

    takes_shards: ClassVar[bool] = True

    lr: float = option(0.1, "learning rate at the schedule's peak", gt=0)
    momentum: float = option(0.0, "fraction of the last step that is added again", ge=0, lt=1)
