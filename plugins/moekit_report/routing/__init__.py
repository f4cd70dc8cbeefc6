"""``callbacks: {routing: {use: routing}}``: statistics of routing during a run."""

from typing import ClassVar

from moekit.spec.fields import option
from moekit.spec.kinds import CallbackSpec


class RoutingStatistics(CallbackSpec):
    """Statistics of routing, at logged steps and over every validation. Every run has this callback by default."""

    takes_shards: ClassVar[bool] = True
    train: bool = option(True, "record logged steps of training")
    validation: bool = option(True, "record validations")
    panels: bool = option(True, "show it in loggers too: numbers, histograms, pictures and a report")
