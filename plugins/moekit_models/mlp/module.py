"""One hidden layer of logistic units, logistic outputs."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from moekit.contracts import Model, ModelOutput
from moekit_models.mlp import MLP


@final
class MLPModel(Model):
    """``sigmoid(W2 sigmoid(W1 x + b1) + b2)``; initial weights and biases are uniform within ±``init_range``."""

    def __init__(self, spec: MLP) -> None:
        super().__init__()
        self.spec = spec
        self.hidden = nn.Linear(spec.inputs, spec.hidden)
        self.out = nn.Linear(spec.hidden, spec.outputs)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -spec.init_range, spec.init_range)

    def forward(self, inputs: Tensor, *, valid: Tensor | None = None) -> ModelOutput:
        """``x_TD -> y_TO``."""
        return ModelOutput(y=self.out(self.hidden(inputs).sigmoid()).sigmoid())
