"""What the variants of one shape share: tokens, a routing, experts; and the layer as one would first write it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.contracts import ExpertBank, LayerDims
from moekit.contracts.layer import Groups
from moekit.params import multiply_adds
from moekit.registry import build
from moekit.routing import TokenChoice
from moekit.spec.kinds import ExpertSpec
from moekit.spec.loading import component_spec
from moekit_bench.request import Shape

EXPERTS = "glu"
"""The experts that are measured, by their name in the registry."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Tokens, and a uniform routing of them that is given: a router's own time is not measured with the layer.

    Gradients are taken of the tokens and of the routing's gates.
    """

    shape: Shape
    x_TD: Tensor
    routing: TokenChoice

    @property
    def dims(self) -> LayerDims:
        """D and E, in the form that components are built from."""
        return LayerDims(dim=self.shape.D, num_experts=self.shape.E)

    @property
    def gate_TK(self) -> Tensor:
        """The routing's gates, a leaf."""
        return self.routing.gate_TK

    @property
    def input_bytes(self) -> int:
        """Bytes of the tokens."""
        return self.x_TD.numel() * self.x_TD.element_size()

    def least_bytes(self) -> int:
        """Bytes that backward needs of a GLU layer if all else is recomputed: T·D + T·K·2H numbers."""
        T, D, H, _, K = self.shape
        return (T * D + T * K * 2 * H) * self.x_TD.element_size()

    def experts(self) -> ExpertBank:
        """New GLU experts of the shape, on the device of the tokens, in their dtype."""
        experts: ExpertBank = build_in(
            expert_spec(self.shape.E, self.shape.H), self.dims, self.x_TD.device.type, self.x_TD.dtype
        )
        return experts


def make_workload(shape: Shape, device: str, dtype: torch.dtype) -> Workload:
    """Samples tokens and a routing, the same in every process."""
    T, D, _, E, K = shape
    torch.manual_seed(0)
    x_TD = torch.randn(T, D, device=device, dtype=dtype, requires_grad=True)
    logits_TE = torch.randn(T, E, device=device)
    scores_TE = logits_TE.softmax(-1)
    gate_TK, expert_TK = scores_TE.topk(K)
    routing = TokenChoice(
        logits_TE=logits_TE, scores_TE=scores_TE, expert_TK=expert_TK, gate_TK=gate_TK.contiguous().requires_grad_()
    )
    return Workload(shape=shape, x_TD=x_TD, routing=routing)


def expert_spec(count: int, hidden: int) -> ExpertSpec:
    """GLU experts. One of hidden K·H does as many multiply-adds per token as K of hidden H."""
    spec = component_spec("expert", {"use": EXPERTS, "count": count, "hidden": hidden})
    assert isinstance(spec, ExpertSpec)
    return spec


def counted_multiply_adds(shape: Shape) -> tuple[int, int]:
    """Of one forward pass, sparse and dense, each counted by running one token on the meta device."""
    T, D, H, E, K = shape
    return T * K * multiply_adds(expert_spec(E, H), D), T * multiply_adds(expert_spec(1, K * H), D)


def build_in(spec: Any, dims: LayerDims, device: str, dtype: torch.dtype) -> Any:
    """Builds a component directly on a device in a dtype, without a copy in another."""
    with torch.device(device), default_dtype(dtype):
        return build(spec, dims)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Sets the dtype of new float tensors within the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def stacked_weights(experts: ExpertBank) -> tuple[nn.Parameter, nn.Parameter]:
    """``w_in_EHD`` (gate above up) and ``w_out_EOH`` of the benchmark's GLU experts."""
    form = experts.standard_form()
    assert form is not None
    assert isinstance(form.w_in_EHD, nn.Parameter) and isinstance(form.w_out_EOH, nn.Parameter)
    return form.w_in_EHD, form.w_out_EOH


class IdentityExperts(ExpertBank):
    """Experts that return their input, so that only dispatch and combine are left of a layer."""

    def __init__(self, dims: LayerDims) -> None:
        super().__init__()
        self.num_experts, self.out_dim = dims.num_experts, dims.dim

    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        """The rows, unchanged."""
        return x_ND


def plain(x_TD: Tensor, expert_TK: Tensor, gate_TK: Tensor, w_gate_up_EHD: Tensor, w_down_EOH: Tensor) -> Tensor:
    """``y_TO``: the layer as one would first write it: sort, index, ``F.grouped_mm``, un-sort, weighted sum."""
    order_N, token_N, end_E = _sorted(expert_TK, w_down_EOH.shape[0])
    gate_NH, up_NH = F.grouped_mm(x_TD[token_N], w_gate_up_EHD.mT, offs=end_E).chunk(2, -1)
    y_NO = F.grouped_mm(F.silu(gate_NH) * up_NH, w_down_EOH.mT, offs=end_E)
    return _combined(y_NO, order_N, gate_TK)


def plain_dispatch(x_TD: Tensor, expert_TK: Tensor, gate_TK: Tensor, num_experts: int) -> Tensor:
    """``y_TD``: the same without experts."""
    order_N, token_N, _ = _sorted(expert_TK, num_experts)
    return _combined(x_TD[token_N], order_N, gate_TK)


def _sorted(expert_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    expert_N = expert_TK.flatten()
    order_N = expert_N.argsort(stable=True)
    end_E = torch.bincount(expert_N, minlength=num_experts).cumsum(0).int()
    return order_N, order_N // expert_TK.shape[1], end_E


def _combined(y_NO: Tensor, order_N: Tensor, gate_TK: Tensor) -> Tensor:
    T, K = gate_TK.shape
    back_N = torch.empty_like(order_N)
    back_N[order_N] = torch.arange(T * K, device=order_N.device)
    return (y_NO[back_N].view(T, K, -1) * gate_TK.to(y_NO.dtype).unsqueeze(-1)).sum(1)
