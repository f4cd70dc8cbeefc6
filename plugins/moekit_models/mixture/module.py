"""The mixture of 1991: a single ``MoELayer`` from cases to outputs."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from moekit.contracts import Model, ModelOutput
from moekit.moe_layer import MoELayer
from moekit_models.mixture import Mixture


@final
class MixtureModel(Model):
    """One MoE layer; initial weights and biases are uniform within ±``init_range``."""

    def __init__(self, spec: Mixture) -> None:
        super().__init__()
        self.spec = spec
        self.moe = MoELayer.from_spec(spec.moe, spec.inputs, spec.outputs)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -spec.init_range, spec.init_range)

    def forward(self, inputs: Tensor, *, valid: Tensor | None = None) -> ModelOutput:
        """``x_TD -> y_TO``, the blended output; each expert's own is in the report ``moe``."""
        y_TO, report = self.moe(inputs, valid=valid)
        return ModelOutput(y=y_TO, reports={"moe": report})
