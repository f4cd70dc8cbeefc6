"""GLU experts over stacked weights."""

from __future__ import annotations

from typing import final

from torch import Tensor

from moekit.contracts import ExpertBank, LayerDims
from moekit.groups import Groups
from moekit_experts.glu import Glu
from moekit_experts.stacked import ACTIVATIONS, draw_uniform, stacked


@final
class GluExperts(ExpertBank):
    """``y = down(act(gate(x)) * up(x))``, without biases.

    Source: Shazeer 2020 (arXiv 2002.05202), equations 5 and 6.

    Gate and up are one product over the same rows, so their weights are kept as one: ``w_gate_up_EHD`` has shape
    ``[E, 2H, D]``, the gate in rows 0 to H - 1 and up in rows H to 2H - 1 of each expert. (Halves, not interleaved
    rows: reading them apart again costs nothing.)

    Shapes: ``w_gate_up_EHD`` ``[E, 2H, D]``, ``w_down_EOH`` ``[E, O, H]``.
    """

    def __init__(self, spec: Glu, dims: LayerDims) -> None:
        super().__init__()
        self.num_experts, self.hidden, self.out_dim = spec.count, spec.hidden, dims.out_dim
        self.activation = spec.activation
        self.w_gate_up_EHD = stacked(spec.count, 2 * spec.hidden, dims.dim)
        self.w_down_EOH = stacked(spec.count, dims.out_dim, spec.hidden)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws every matrix as ``nn.Linear`` does."""
        draw_uniform(self.w_gate_up_EHD.shape[2], self.w_gate_up_EHD)
        draw_uniform(self.hidden, self.w_down_EOH)

    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        """``y_NO``: each row through its own expert."""
        gate_NH, up_NH = groups.linear(x_ND, self.w_gate_up_EHD).chunk(2, dim=-1)
        return groups.linear(ACTIVATIONS[self.activation](gate_NH) * up_NH, self.w_down_EOH)

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        dim = self.w_gate_up_EHD.shape[2]
        sizes = f"experts={self.num_experts}, dim={dim}, hidden={self.hidden}, out={self.out_dim}"
        return f"{sizes}, activation={self.activation}"
