"""Routings in which tokens choose given experts, and the balance loss of a routing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moekit import build
from moekit.contracts import BalanceContext, LayerDims
from moekit.routing import Routing, TokenChoice
from moekit.spec.kinds import BalancerSpec


def token_choice(
    scores: Tensor | Sequence[Sequence[float]],
    chosen: Tensor | Sequence[Sequence[int]],
    valid: Tensor | Sequence[bool] | None = None,
    **parts: Any,
) -> TokenChoice:
    """Listed affinities are fp64. Logits are the affinities, and gates those of the chosen experts, unless given."""
    scores_TE = scores if isinstance(scores, Tensor) else torch.tensor(scores, dtype=torch.float64)
    expert_TK, valid_T = torch.as_tensor(chosen), None if valid is None else torch.as_tensor(valid)
    if "gate_TK" not in parts:
        parts["gate_TK"] = scores_TE.gather(1, expert_TK)
    parts = {"logits_TE": scores_TE, **parts}
    return TokenChoice(scores_TE=scores_TE, expert_TK=expert_TK, valid_T=valid_T, **parts)


def best_of_random(T: int, E: int, K: int, dtype: torch.dtype = torch.float32) -> TokenChoice:
    """Each token chooses the K experts of highest affinity, which is random; gates are a softmax over all experts."""
    logits_TE = torch.randn(T, E, dtype=dtype)
    gate_TK, expert_TK = logits_TE.softmax(1).topk(K)
    return token_choice(logits_TE, expert_TK, gate_TK=gate_TK)


def loss_of(spec: BalancerSpec, routing: Routing, num_sequences: int = 1) -> Tensor:
    """The balance loss in training, before it is weighted."""
    balancer = build(spec, LayerDims(dim=1, num_experts=routing.num_experts))
    term = balancer.loss(routing, BalanceContext(num_sequences=num_sequences, training=True))
    assert term.weight == spec.weight  # type: ignore[attr-defined]
    value: Tensor = term.value
    return value
