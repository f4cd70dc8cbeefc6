"""megablocks: its dropless layer with GLU experts of equal work, under its own router. GPUs only."""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F

from moekit.bench.timing import Variant
from moekit.bench.work import Work
from moekit.contracts import ExpertBank
from moekit.errors import MoekitError


def variants(work: Work, experts: ExpertBank) -> list[Variant]:
    """The layer by grouped products. Its weights are laid out for itself: equal shapes, values of its own.

    Raises:
        MoekitError: not on a GPU.
    """
    if work.x_TD.device.type != "cuda":
        raise MoekitError("--against megablocks: it runs on GPUs alone; add --device cuda")
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
            note="its own router, timed too; weights of its own",
        )
    ]
