"""Half the squared error of a prediction, which the backprop nets of 1991 minimise.

Source: Rumelhart, Hinton, Williams 1986; the baseline of Jacobs et al. 1991.
"""

from __future__ import annotations

from typing import ClassVar

from moekit.spec.kinds import ObjectiveSpec


class SquaredError(ObjectiveSpec):
    """No options."""

    takes: ClassVar[frozenset[str]] = frozenset({"prediction", "mixture"})
