"""Half the squared error of a prediction, which the backprop nets of 1991 minimise.

Source: Rumelhart, Hinton, Williams 1986; the baseline of Jacobs et al. 1991.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moekit.component import Component
from moekit.spec.kinds import ObjectiveSpec


@dataclass(frozen=True, kw_only=True)
class SquaredError(ObjectiveSpec):
    """No options."""

    takes: ClassVar[frozenset[str]] = frozenset({"prediction", "mixture"})


COMPONENT = Component(
    name="squared_error",
    spec=SquaredError,
    target="moekit_objectives.squared_error.module:SquaredErrorObjective",
    summary="half the squared error of the output",
    paper="Rumelhart et al. 1986",
)
