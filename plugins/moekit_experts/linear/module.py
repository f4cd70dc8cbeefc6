"""Experts of one linear layer. Reference implementation: ``naive.py``."""

from __future__ import annotations

from typing import final

from torch import Tensor

from moekit.contracts import ExpertBank, LayerDims
from moekit.contracts.layer import Groups
from moekit_experts.linear import Linear, Logistic
from moekit_experts.stacked import init_as_linear, stacked


@final
class LinearExperts(ExpertBank):
    """``y = W x + b``; ``y = sigmoid(W x + b)`` when built from a ``Logistic`` spec.

    Source: Jacobs, Jordan, Nowlan, Hinton 1991, Adaptive Mixtures of Local Experts, Neural Computation 3(1), whose
    vowel experts are single logistic units.

    Shapes: ``w_EOD``; ``b_EO`` or None.
    """

    def __init__(self, spec: Linear | Logistic, dims: LayerDims) -> None:
        super().__init__()
        self.num_experts, self.out_dim = spec.count, dims.out_dim
        self.logistic = isinstance(spec, Logistic)
        self.w_EOD = stacked(spec.count, dims.out_dim, dims.dim)
        self.b_EO = stacked(spec.count, dims.out_dim) if spec.bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises the matrix and the bias like ``nn.Linear``."""
        init_as_linear(self.w_EOD.shape[2], self.w_EOD, self.b_EO)

    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        """``y_NO``: each row through its own expert."""
        y_NO = groups.linear(x_ND, self.w_EOD, self.b_EO)
        return y_NO.sigmoid() if self.logistic else y_NO

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        sizes = f"experts={self.num_experts}, dim={self.w_EOD.shape[2]}, out={self.out_dim}"
        return f"{sizes}, bias={self.b_EO is not None}, logistic={self.logistic}"
