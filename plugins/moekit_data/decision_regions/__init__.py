"""A picture of a model of vowels: its decision boundary, and which expert has the largest gate where."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from moekit.spec.kinds import DataSpec, EvaluatorSpec
from moekit_data.vowels import Vowels


class DecisionRegions(EvaluatorSpec):
    """No options."""

    takes: ClassVar[frozenset[str]] = frozenset({"cases"})

    def check_data(self, data: DataSpec) -> Iterable[str]:
        """The data must be vowels, whose formants are the plane of the picture."""
        if not isinstance(data, Vowels):
            yield f"it draws the plane of two formants, and data {type(data).__name__} has none; take data: vowels"
