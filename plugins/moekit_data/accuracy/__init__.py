"""The share of validation pairs whose target the model gives exactly: a classifier that writes labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from moekit.spec.fields import MetricInfo
from moekit.spec.kinds import EvaluatorSpec


class Accuracy(EvaluatorSpec):
    """No options."""

    takes: ClassVar[frozenset[str]] = frozenset({"pairs"})

    def metrics(self) -> Mapping[str, MetricInfo]:
        """The accuracy, that of guessing, and of how many windows they are."""
        return {
            "accuracy": MetricInfo("accuracy", lower_is_better=False, digits=4),
            "guessing": MetricInfo("guessing", lower_is_better=False, digits=4),
            "scored_windows": MetricInfo("scored windows", lower_is_better=False, digits=0),
        }
