"""megablocks: its dropless layer with GLU experts of equal work and its own router. GPUs only."""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F

from moekit.bench.measure import Variant
from moekit.bench.peers import require_gpu
from moekit.bench.workload import Workload
from moekit.contracts import ExpertBank


def variants(work: Workload, experts: ExpertBank) -> list[Variant]:
    """The layer by grouped products, with weights of its own in equal shapes: it stores them in another layout.

    Raises:
        MoekitError: not on a GPU.
    """
    require_gpu(work, "megablocks")
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
    parameters = list(layer.parameters())

    def forward() -> torch.Tensor:
        out = layer(work.x_TD[None])
        y: torch.Tensor = (out[0] if isinstance(out, tuple) else out)[0]
        return y

    return [
        Variant(
            name="megablocks",
            forward=forward,
            leaves=[work.x_TD, *parameters],
            weights=parameters,
            agrees=False,
            note="its own router, timed too; its own weights",
        )
    ]
