"""Half the squared error of a prediction, which the backprop nets of 1991 minimise.

Source: Rumelhart, Hinton, Williams 1986; the baseline of Jacobs et al. 1991.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from moekit.spec.fields import MetricInfo
from moekit.spec.kinds import ObjectiveSpec
from moekit_objectives.metrics import CASES


class SquaredError(ObjectiveSpec):
    """No options."""

    takes: ClassVar[frozenset[str]] = frozenset({"prediction", "mixture"})

    def metrics(self) -> Mapping[str, MetricInfo]:
        """Those of every objective over cases."""
        return CASES
