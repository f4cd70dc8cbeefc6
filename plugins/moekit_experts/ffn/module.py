"""FFN experts over stacked weights. Reference implementation: ``naive.py``."""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor

from moekit.contracts import ExpertBank, LayerDims, StandardForm
from moekit.contracts.layer import Groups
from moekit_experts.ffn import Ffn
from moekit_experts.stacked import ACTIVATIONS, init_as_linear, stacked


@final
class FfnExperts(ExpertBank):
    """``y = down(drop(act(up(x))))``.

    Source: Vaswani et al. 2017, Attention Is All You Need (arXiv 1706.03762), equation 2; ``drop`` is dropout, in
    training only (Fedus et al. 2021, Switch Transformer, arXiv 2101.03961, section 2.4).

    Shapes: ``w_up_EHD``, ``w_down_EOH``; ``b_up_EH``, ``b_down_EO`` or None.
    """

    def __init__(self, spec: Ffn, dims: LayerDims) -> None:
        super().__init__()
        E, H = spec.count, spec.hidden
        self.num_experts, self.out_dim = E, dims.out_dim
        self.activation, self.dropout = spec.activation, spec.dropout
        self.w_up_EHD = stacked(E, H, dims.dim)
        self.w_down_EOH = stacked(E, dims.out_dim, H)
        self.b_up_EH = stacked(E, H) if spec.bias else None
        self.b_down_EO = stacked(E, dims.out_dim) if spec.bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises every matrix and bias like ``nn.Linear``."""
        init_as_linear(self.w_up_EHD.shape[2], self.w_up_EHD, self.b_up_EH)
        init_as_linear(self.w_down_EOH.shape[2], self.w_down_EOH, self.b_down_EO)

    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        """``y_NO``: each row through its own expert."""
        up_NH = groups.linear(x_ND, self.w_up_EHD, self.b_up_EH)
        hidden_NH = F.dropout(ACTIVATIONS[self.activation](up_NH), self.dropout, self.training)
        return groups.linear(hidden_NH, self.w_down_EOH, self.b_down_EO)

    def standard_form(self) -> StandardForm | None:
        """Both weights; None with biases, or with dropout in training."""
        if self.b_up_EH is not None or (self.dropout and self.training):
            return None
        return StandardForm(activation=self.activation, gated=False, w_in_EHD=self.w_up_EHD, w_out_EOH=self.w_down_EOH)

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        E, H, D = self.w_up_EHD.shape
        bias = self.b_up_EH is not None
        sizes = f"experts={E}, dim={D}, hidden={H}, out={self.out_dim}"
        return f"{sizes}, activation={self.activation}, bias={bias}, dropout={self.dropout}"
