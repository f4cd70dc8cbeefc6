"""Routings made by hand or at random, for parts that are tested without a router."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from moekit.routing import ExpertChoice, Routing, Soft, TokenChoice
from moekit.spec.kinds import Form
from moekit.testing.case import normal


def some_routing(
    form: Form,
    T: int,
    E: int,
    *,
    K: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    valid_T: Tensor | None = None,
    slots: int = 0,
) -> Routing:
    """A routing drawn at random: K experts a token, T·K/E tokens an expert, or soft (with ``slots`` > 0: in slots)."""
    logits_TE = normal(T, E, seed=seed, dtype=dtype)
    scores_TE = logits_TE.softmax(1)
    shared: dict[str, Any] = {"logits_TE": logits_TE, "scores_TE": scores_TE, "valid_T": valid_T}
    if form == "token_choice":
        expert_TK = logits_TE.topk(K, dim=1).indices
        shared["smooth_load_E"] = _smooth_load(scores_TE, valid_T, K)
        return TokenChoice(**shared, expert_TK=expert_TK, gate_TK=scores_TE.gather(1, expert_TK))
    if form == "expert_choice":
        C = -(-T * K // E)
        gate_EC, token_EC = scores_TE.T.topk(C, dim=1)
        return ExpertChoice(**shared, token_EC=token_EC, gate_EC=gate_EC.contiguous())
    if not slots:
        return Soft(**shared, combine_TEP=scores_TE[:, :, None])
    both_TEP = normal(T, E, slots, seed=seed + 1, dtype=dtype)
    combine_TEP = both_TEP.flatten(1).softmax(1).view(T, E, slots)
    return Soft(**shared, combine_TEP=combine_TEP, dispatch_TEP=both_TEP.softmax(0))


def _smooth_load(scores_TE: Tensor, valid_T: Tensor | None, K: int) -> Tensor:
    """A load that a gradient can be asked of, as a router with noise gives one: affinities, K for every token."""
    return (scores_TE if valid_T is None else scores_TE.where(valid_T[:, None], 0)).sum(0) * K


def with_gates(routing: Routing, gates: Tensor) -> Routing:
    """The same routing with other weights on the experts' outputs (so that a gradient can be asked of them)."""
    shared: dict[str, Any] = {
        "logits_TE": routing.logits_TE,
        "scores_TE": routing.scores_TE,
        "valid_T": routing.valid_T,
    }
    if isinstance(routing, TokenChoice):
        return replace(routing, gate_TK=gates)
    if isinstance(routing, ExpertChoice):
        return ExpertChoice(**shared, token_EC=routing.token_EC, gate_EC=gates)
    assert isinstance(routing, Soft)
    return Soft(**shared, combine_TEP=gates, dispatch_TEP=routing.dispatch_TEP)


def rescored(routing: Routing, logits_TE: Tensor) -> Routing:
    """The same choice with scores and gates made of other logits, so that a gradient reaches them all."""
    scores_TE = logits_TE.softmax(1)
    shared: dict[str, Any] = {"logits_TE": logits_TE, "scores_TE": scores_TE, "valid_T": routing.valid_T}
    if isinstance(routing, TokenChoice):
        expert_TK = routing.expert_TK
        shared["smooth_load_E"] = _smooth_load(scores_TE, routing.valid_T, expert_TK.shape[1])
        return TokenChoice(**shared, expert_TK=expert_TK, gate_TK=scores_TE.gather(1, expert_TK))
    if isinstance(routing, ExpertChoice):
        return ExpertChoice(**shared, token_EC=routing.token_EC, gate_EC=scores_TE.T.gather(1, routing.token_EC))
    return Soft(**shared, combine_TEP=scores_TE[:, :, None])


def balanced(form: Form, E: int, K: int, B: int) -> Routing:
    """Uniform affinities and even loads, in every sequence of E tokens."""
    T = B * E
    uniform_TE = torch.full((T, E), 1 / E, dtype=torch.float64)
    shared: dict[str, Any] = {"logits_TE": torch.zeros(T, E, dtype=torch.float64), "scores_TE": uniform_TE}
    if form == "token_choice":
        expert_TK = (torch.arange(T)[:, None] + torch.arange(K)) % E
        shared["smooth_load_E"] = _smooth_load(uniform_TE, None, K)
        return TokenChoice(**shared, expert_TK=expert_TK, gate_TK=uniform_TE[:, :K])
    if form == "expert_choice":
        token_EC = (torch.arange(E)[:, None] + torch.arange(B * K)) % T
        return ExpertChoice(**shared, token_EC=token_EC, gate_EC=torch.full((E, B * K), 1 / E, dtype=torch.float64))
    return Soft(**shared, combine_TEP=uniform_TE[:, :, None])


def skewed(form: Form, E: int, T: int) -> Routing:
    """Nearly all affinity and every token's first choice on expert 0."""
    logits_TE = torch.zeros(T, E, dtype=torch.float64)
    logits_TE[:, 0] = 5
    shared: dict[str, Any] = {"logits_TE": logits_TE, "scores_TE": logits_TE.softmax(1)}
    if form == "token_choice":
        zero = torch.zeros(T, 1, dtype=torch.int64)
        shared["smooth_load_E"] = _smooth_load(shared["scores_TE"], None, 1)
        return TokenChoice(**shared, expert_TK=zero, gate_TK=torch.ones(T, 1, dtype=torch.float64))
    routing = some_routing(form, T, E)
    if isinstance(routing, ExpertChoice):
        return ExpertChoice(**shared, token_EC=routing.token_EC, gate_EC=routing.gate_EC)
    return Soft(**shared, combine_TEP=logits_TE.softmax(1)[:, :, None])


def padded(routing: Routing, valid_T: Tensor) -> Routing:
    """The routing's tokens at the places that are valid; NaN affinities and expert 0 in between."""

    def among(x: Tensor, fill: float) -> Tensor:
        out = x.new_full((valid_T.shape[0], *x.shape[1:]), fill)
        out[valid_T] = x
        return out

    nan = float("nan")
    shared: dict[str, Any] = {
        "logits_TE": among(routing.logits_TE, nan),
        "scores_TE": among(routing.scores_TE, nan),
        "valid_T": valid_T,
        "smooth_load_E": routing.smooth_load_E,
    }
    if isinstance(routing, TokenChoice):
        expert_TK = among(routing.expert_TK, 0)
        expert_TK[~valid_T] = torch.arange(expert_TK.shape[1])
        return TokenChoice(**shared, expert_TK=expert_TK, gate_TK=among(routing.gate_TK, nan))
    assert isinstance(routing, Soft)
    return Soft(**shared, combine_TEP=among(routing.combine_TEP, nan))
