"""``½ || d - y ||²``, summed over cases."""

from __future__ import annotations

from typing import final

from moekit.contracts import Batch, LossSum, ModelOutput, Objective
from moekit_objectives.cases import at_least_fp32, sum_over_cases
from moekit_objectives.squared_error import SquaredError


@final
class SquaredErrorObjective(Objective):
    """Half the squared error, summed over outputs and cases."""

    def __init__(self, spec: SquaredError) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, output: ModelOutput, batch: Batch, *, progress: float = 0.0) -> LossSum:
        """The loss of one batch; metrics as in ``moekit_objectives.cases.sum_over_cases``."""
        error_T = (batch.targets - at_least_fp32(output.y)).square().sum(-1) / 2
        return sum_over_cases(error_T, output.y, batch)
