"""The backprop net that the mixture of 1991 was compared with: one hidden layer of logistic units, logistic outputs.

Source: Rumelhart, Hinton, Williams 1986; as the baseline of Jacobs et al. 1991 (Table 1).
"""

from typing import ClassVar

from moekit.spec.fields import option
from moekit.spec.kinds import ModelSpec


class MLP(ModelSpec):
    """Options of the net."""

    gives: ClassVar[str] = "prediction"
    takes: ClassVar[str] = "cases"

    inputs: int = option(help="numbers in a case", ge=1)
    hidden: int = option(help="hidden units", ge=1)
    outputs: int = option(1, "numbers to predict", ge=1)
    init_range: float = option(0.5, "initial weights and biases are uniform within plus or minus this", gt=0)
