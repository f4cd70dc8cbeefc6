"""st_moe_pytorch: its layer with experts of equal work, with its own router and capacity."""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.bench.measure import Variant
from moekit.bench.workload import Workload, default_dtype, stacked_weights
from moekit.contracts import ExpertBank


class GluExpert(nn.Module):
    """One expert of a bank as a module of its own, which is what the library takes.

    Args:
        w_gate_up_HD: gate and up, one above the other.
        w_down_OH: down.
    """

    def __init__(self, w_gate_up_HD: Tensor, w_down_OH: Tensor) -> None:
        super().__init__()
        self.w_gate_up_HD, self.w_down_OH = nn.Parameter(w_gate_up_HD), nn.Parameter(w_down_OH)

    def forward(self, x: Tensor) -> Tensor:
        """``down(silu(gate(x)) * up(x))``."""
        gate, up = F.linear(x, self.w_gate_up_HD).chunk(2, -1)
        return F.linear(F.silu(gate) * up, self.w_down_OH)


def variants(work: Workload, experts: ExpertBank) -> list[Variant]:
    """The layer with capacity factor 1: as many slots as pairs, so equal work; pairs beyond it are dropped."""
    w_in_EHD, w_out_EOH = stacked_weights(experts)
    _, D, _, E, K = work.shape
    device, dtype = work.x_TD.device, work.x_TD.dtype
    weights = zip(w_in_EHD.detach().unbind(0), w_out_EOH.detach().unbind(0), strict=True)
    modules = nn.ModuleList(GluExpert(w_in_HD, w_out_OH) for w_in_HD, w_out_OH in weights)
    library: Any = importlib.import_module("st_moe_pytorch")
    with torch.device(device), default_dtype(dtype):
        layer: Any = library.MoE(
            dim=D, num_experts=E, gating_top_n=K, experts=modules, threshold_train=0.0, capacity_factor_train=1.0
        )
    parameters = list(layer.parameters())
    return [
        Variant(
            name="st_moe_pytorch",
            forward=lambda: layer(work.x_TD[None])[0][0],
            leaves=[work.x_TD, *parameters],
            weights=parameters,
            agrees=False,
            note="its own router, timed too; capacity by its own rule",
        )
    ]
