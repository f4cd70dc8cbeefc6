"""Layers of st_moe_pytorch, megablocks and scattermoe, with experts of equal work. The last two run on GPUs only."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.contracts import ExpertBank
from moekit.errors import MoekitError
from moekit_bench.measure import Variant
from moekit_bench.workload import Workload, default_dtype, stacked_weights


class GluExpert(nn.Module):
    """One expert of a bank as a module of its own, which is what st_moe_pytorch takes; gate is stacked above up."""

    def __init__(self, w_gate_up_HD: Tensor, w_down_OH: Tensor) -> None:
        super().__init__()
        self.w_gate_up_HD, self.w_down_OH = nn.Parameter(w_gate_up_HD), nn.Parameter(w_down_OH)

    def forward(self, x: Tensor) -> Tensor:
        """``down(silu(gate(x)) * up(x))``."""
        gate, up = F.linear(x, self.w_gate_up_HD).chunk(2, -1)
        return F.linear(F.silu(gate) * up, self.w_down_OH)


def st_moe_pytorch(work: Workload, experts: ExpertBank) -> list[Variant]:
    """With capacity factor 1: as many slots as pairs, so equal work; pairs beyond it are dropped."""
    w_in_EHD, w_out_EOH = stacked_weights(experts)
    _, D, _, E, K = work.shape
    weights = zip(w_in_EHD.detach().unbind(0), w_out_EOH.detach().unbind(0), strict=True)
    modules = nn.ModuleList(GluExpert(w_in_HD, w_out_OH) for w_in_HD, w_out_OH in weights)
    library: Any = importlib.import_module("st_moe_pytorch")
    with torch.device(work.x_TD.device), default_dtype(work.x_TD.dtype):
        layer: Any = library.MoE(
            dim=D, num_experts=E, gating_top_n=K, experts=modules, threshold_train=0.0, capacity_factor_train=1.0
        )
    note = "its own router, timed too; capacity by its own rule"
    return [_own_layer("st_moe_pytorch", layer, lambda: layer(work.x_TD[None])[0][0], work, note)]


def megablocks(work: Workload, experts: ExpertBank) -> list[Variant]:
    """By grouped products, with weights of its own in equal shapes: it stores them in another layout.

    Raises:
        MoekitError: not on a GPU.
    """
    _require_gpu(work, "megablocks")
    _, D, H, E, K = work.shape
    options: Any = importlib.import_module("megablocks.layers.arguments").Arguments(
        hidden_size=D,
        ffn_hidden_size=H,
        moe_num_experts=E,
        moe_top_k=K,
        moe_normalize_expert_weights=1,
        mlp_type="glu",
        mlp_impl="grouped",
        activation_fn=F.silu,
        bias=False,
        return_bias=False,
        bf16=work.x_TD.dtype == torch.bfloat16,
        fp16=work.x_TD.dtype == torch.float16,
    )
    layer: Any = importlib.import_module("megablocks.layers.dmoe").dMoE(options).to(work.x_TD.device, work.x_TD.dtype)

    def forward() -> Tensor:
        out = layer(work.x_TD[None])
        y_TO: Tensor = (out[0] if isinstance(out, tuple) else out)[0]
        return y_TO

    return [_own_layer("megablocks", layer, forward, work, "its own router, timed too; its own weights")]


def _own_layer(name: str, layer: nn.Module, forward: Callable[[], Tensor], work: Workload, note: str) -> Variant:
    """A layer with a router of its own, so that its output is not compared."""
    weights = list(layer.parameters())
    return Variant(name=name, forward=forward, leaves=[work.x_TD, *weights], weights=weights, agrees=False, note=note)


def scattermoe(work: Workload, experts: ExpertBank) -> list[Variant]:
    """On equal weights and routing. It stores up above gate, so its first weight is a copy with the halves swapped.

    Raises:
        MoekitError: not on a GPU.
    """
    _require_gpu(work, "scattermoe")
    w_in_EHD, w_out_EOH = stacked_weights(experts)
    _, D, H, E, K = work.shape
    with torch.device("meta"):
        layer: Any = importlib.import_module("scattermoe.mlp").GLUMLP(
            input_size=D, hidden_size=H, num_experts=E, top_k=K, activation=nn.SiLU()
        )
    gate_EHD, up_EHD = w_in_EHD.detach().chunk(2, 1)
    layer.experts.weight = nn.Parameter(torch.cat([up_EHD, gate_EHD], 1))
    layer.output_experts.weight = w_out_EOH
    parameters = [layer.experts.weight, layer.output_experts.weight]
    return [
        Variant(
            name="scattermoe",
            forward=lambda: layer(work.x_TD, work.gate_TK.to(work.x_TD.dtype), work.routing.expert_TK),
            leaves=[work.x_TD, work.gate_TK, *parameters],
            weights=parameters,
        )
    ]


def _require_gpu(work: Workload, name: str) -> None:
    if work.x_TD.device.type != "cuda":
        raise MoekitError(f"--against {name}: it runs on GPUs alone; add --device cuda")
