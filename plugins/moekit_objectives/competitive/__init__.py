"""The three errors of 1991: experts cooperate, compete, or form a mixture of Gaussians.

Source: Jacobs, Jordan, Nowlan, Hinton 1991, "Adaptive Mixtures of Local Experts", eqs 1.1, 1.2, 1.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from moekit.spec.fields import MetricInfo, option
from moekit.spec.kinds import ObjectiveSpec
from moekit_objectives.metrics import CASES


class Competitive(ObjectiveSpec):
    """Options of 1991's errors."""

    takes: ClassVar[frozenset[str]] = frozenset({"mixture"})
    error: Literal["cooperative", "competitive", "likelihood"] = option(
        "likelihood", "eq. 1.1 (error of the blend), 1.2 (blend of errors) or 1.3 (-log of a mixture of Gaussians)"
    )

    def metrics(self) -> Mapping[str, MetricInfo]:
        """Those of every objective over cases."""
        return CASES
