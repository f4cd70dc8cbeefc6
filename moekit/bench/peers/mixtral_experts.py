"""transformers: the experts of its Mixtral block, by each of its implementations, on equal weights and routing."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moekit.bench.timing import Variant
from moekit.bench.work import Work
from moekit.contracts import ExpertBank
from moekit.errors import MoekitError

IMPLEMENTATIONS = ("grouped_mm", "eager")


def variants(work: Work, experts: ExpertBank) -> list[Variant]:
    """One variant an implementation. Weights are shared with ``experts``: the layout is the same.

    Raises:
        MoekitError: a version that keeps its experts otherwise.
    """
    form = experts.standard_form()
    assert form is not None
    leaves = [work.x_TD, work.gate_TK, form.w_in_EHD, form.w_out_EOH]
    found = []
    for implementation in IMPLEMENTATIONS:
        run = _experts(work, form.w_in_EHD, form.w_out_EOH, implementation)
        found.append(Variant(name=f"transformers {implementation}", forward=run, leaves=leaves, weights=leaves[2:]))
    return found


def _experts(work: Work, w_in_EHD: Tensor, w_out_EOH: Tensor, implementation: str) -> Callable[[], Tensor]:
    _, D, H, E, K = work.shape
    mixtral: Any = importlib.import_module("transformers.models.mixtral.modeling_mixtral")
    config: Any = importlib.import_module("transformers").MixtralConfig(
        hidden_size=D, intermediate_size=H, num_local_experts=E, num_experts_per_tok=K
    )
    config._experts_implementation = implementation
    if not hasattr(mixtral, "MixtralExperts"):
        raise MoekitError("--against transformers: version 5 or later is needed, whose experts are stacked")
    with torch.device("meta"):
        block: Any = mixtral.MixtralExperts(config)
    if block.gate_up_proj.shape != w_in_EHD.shape or block.down_proj.shape != w_out_EOH.shape:
        raise MoekitError("--against transformers: this version lays its weights out in another way")
    block.gate_up_proj, block.down_proj = w_in_EHD, w_out_EOH  # parameters already, and shared
    return lambda: block(work.x_TD, work.routing.expert_TK, work.gate_TK.to(work.x_TD.dtype))
