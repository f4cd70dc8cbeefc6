"""scattermoe: its GLU layer on equal weights and routing. GPUs only."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from moekit.bench.timing import Variant
from moekit.bench.work import Work
from moekit.contracts import ExpertBank
from moekit.errors import MoekitError


def variants(work: Work, experts: ExpertBank) -> list[Variant]:
    """The layer. It keeps up above gate, so the first weight is a copy with its halves changed over.

    Raises:
        MoekitError: not on a GPU.
    """
    if work.x_TD.device.type != "cuda":
        raise MoekitError("--against scattermoe: it runs on GPUs alone; add --device cuda")
    form = experts.standard_form()
    assert form is not None
    _, D, H, E, K = work.shape
    with torch.device("meta"):
        layer: Any = importlib.import_module("scattermoe.mlp").GLUMLP(
            input_size=D, hidden_size=H, num_experts=E, top_k=K, activation=nn.SiLU()
        )
    gate_EHD, up_EHD = form.w_in_EHD.detach().chunk(2, 1)
    layer.experts.weight = nn.Parameter(torch.cat([up_EHD, gate_EHD], 1))
    layer.output_experts.weight = form.w_out_EOH
    parameters = [layer.experts.weight, layer.output_experts.weight]

    def forward() -> Tensor:
        y_TO: Tensor = layer(work.x_TD, work.gate_TK.to(work.x_TD.dtype), work.routing.expert_TK)
        return y_TO

    leaves = [work.x_TD, work.gate_TK, *parameters]
    return [Variant(name="scattermoe", forward=forward, leaves=leaves, weights=parameters)]
