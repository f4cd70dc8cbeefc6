"""GLU experts over stacked weights. Reference implementation: ``naive.py``."""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from moekit.contracts import ExpertBank, Init, LayerDims, StandardForm
from moekit.contracts.layer import Groups
from moekit_experts.glu import Glu
from moekit_experts.stacked import ACTIVATIONS, init_as_linear, stacked


@final
class GluExperts(ExpertBank):
    """``y = down(drop(act(gate(x)) * up(x) * scale))``, by default without additive biases.

    Source: Shazeer 2020, GLU Variants Improve Transformer (arXiv 2002.05202), equations 5 and 6. ``drop`` is dropout,
    in training only (Fedus et al. 2021, Switch Transformer, arXiv 2101.03961, section 2.4). ``scale`` is the
    multiplicative bias of ST-MoE (Zoph et al. 2022, arXiv 2202.08906), if any. Of gpt-oss (OpenAI 2025, arXiv
    2508.10925, released code) are ``bias``, ``clamp``, ``alpha`` and ``up_shift``:
    ``down(g · sigmoid(alpha · g) · (u + up_shift))`` with g = min(gate(x), clamp) and u = up(x) within ± clamp. Of
    Qwen2-MoE (Yang et al. 2024, arXiv 2407.10671, released code) is ``output_gate``: ``y · sigmoid(w·x)``.

    Gate and up are one product over the same rows, so they share a weight: ``w_gate_up_EHD`` has shape ``[E, 2H, D]``,
    the gate in rows 0 to H - 1 and up in rows H to 2H - 1 of each expert. Halves split without a copy;
    interleaved rows would not.

    Shapes: ``w_gate_up_EHD`` ``[E, 2H, D]``, ``w_down_EOH`` ``[E, O, H]``; or None: ``scale_EH``, ``b_gate_up_EH``
    ``[E, 2H]``, ``b_down_EO``, ``w_output_EXD`` ``[E, 1, D]``.
    """

    def __init__(self, spec: Glu, dims: LayerDims) -> None:
        super().__init__()
        self.spec = spec
        self.num_experts, self.hidden, self.out_dim = spec.count, spec.hidden, dims.out_dim
        self.activation, self.dropout = spec.activation, spec.dropout
        self.w_gate_up_EHD = stacked(spec.count, 2 * spec.hidden, dims.dim)
        self.w_down_EOH = stacked(spec.count, dims.out_dim, spec.hidden)
        self.scale_EH = stacked(spec.count, spec.hidden) if spec.scale_bias else None
        self.b_gate_up_EH = stacked(spec.count, 2 * spec.hidden) if spec.bias else None
        self.b_down_EO = stacked(spec.count, dims.out_dim) if spec.bias else None
        self.w_output_EXD = stacked(spec.count, 1, dims.dim) if spec.output_gate else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises matrices and biases like ``nn.Linear``; scales are 1."""
        init_as_linear(self.w_gate_up_EHD.shape[2], self.w_gate_up_EHD, self.b_gate_up_EH, self.w_output_EXD)
        init_as_linear(self.hidden, self.w_down_EOH, self.b_down_EO)
        self._reset_scales()

    def init_weights(self, init: Init) -> None:
        """Initialises every matrix by ``init``; biases are 0, scales 1."""
        for weight in (self.w_gate_up_EHD, self.w_down_EOH, self.w_output_EXD):
            if weight is not None:
                init.draw(weight)
        for bias in (self.b_gate_up_EH, self.b_down_EO):
            if bias is not None:
                nn.init.zeros_(bias)
        self._reset_scales()

    def _reset_scales(self) -> None:
        if self.scale_EH is not None:
            nn.init.ones_(self.scale_EH)

    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        """``y_NO``: each row through its own expert."""
        gate_NH, up_NH = groups.linear(x_ND, self.w_gate_up_EHD, self.b_gate_up_EH).chunk(2, dim=-1)
        hidden_NH = self._gated(gate_NH, up_NH)
        if self.scale_EH is not None:  # in the hidden layer's dtype, which under autocast differs from the parameter's
            hidden_NH = hidden_NH * groups.per_row(self.scale_EH.to(hidden_NH.dtype))
        if self.dropout and self.training:
            hidden_NH = F.dropout(hidden_NH, self.dropout)
        y_NO = groups.linear(hidden_NH, self.w_down_EOH, self.b_down_EO)
        return y_NO if self.w_output_EXD is None else y_NO * groups.linear(x_ND, self.w_output_EXD).sigmoid()

    def _gated(self, gate_NH: Tensor, up_NH: Tensor) -> Tensor:
        """The hidden layer, of both products with their biases."""
        spec = self.spec
        if spec.clamp is not None:
            gate_NH, up_NH = gate_NH.clamp(max=spec.clamp), up_NH.clamp(-spec.clamp, spec.clamp)
        if spec.up_shift:
            up_NH = up_NH + spec.up_shift
        if spec.alpha != 1:
            return gate_NH * (spec.alpha * gate_NH).sigmoid() * up_NH
        return ACTIVATIONS[self.activation](gate_NH) * up_NH

    def standard_form(self) -> StandardForm | None:
        """Both weights; None with any option that the form lacks, or with dropout in training."""
        spec = self.spec
        other = spec.bias or spec.clamp is not None or spec.alpha != 1 or spec.up_shift or spec.output_gate
        if other or self.scale_EH is not None or (self.dropout and self.training):
            return None
        return StandardForm(
            activation=self.activation, gated=True, w_in_EHD=self.w_gate_up_EHD, w_out_EOH=self.w_down_EOH
        )

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        dim = self.w_gate_up_EHD.shape[2]
        sizes = f"experts={self.num_experts}, dim={dim}, hidden={self.hidden}, out={self.out_dim}"
        scaled = self.scale_EH is not None
        return f"{sizes}, activation={self.activation}, scale_bias={scaled}, dropout={self.dropout}"
