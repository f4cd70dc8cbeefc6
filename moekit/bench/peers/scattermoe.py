"""scattermoe: its GLU layer on equal weights and routing. GPUs only."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from moekit.bench.measure import Variant
from moekit.bench.peers import require_gpu
from moekit.bench.workload import Workload, stacked_weights
from moekit.contracts import ExpertBank


def variants(work: Workload, experts: ExpertBank) -> list[Variant]:
    """The layer. It stores up above gate, so its first weight is a copy with the halves swapped.

    Raises:
        MoekitError: not on a GPU.
    """
    require_gpu(work, "scattermoe")
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

    def forward() -> Tensor:
        y_TO: Tensor = layer(work.x_TD, work.gate_TK.to(work.x_TD.dtype), work.routing.expert_TK)
        return y_TO

    leaves = [work.x_TD, work.gate_TK, *parameters]
    return [Variant(name="scattermoe", forward=forward, leaves=leaves, weights=parameters)]
