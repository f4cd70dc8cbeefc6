"""What balance losses are made of: counts, mean affinities and importance, per unit of balance, without padding.

A unit is what must be balanced: one sequence, or a whole micro-batch. B counts units here; tokens lie unit after
unit, T // B of them in each. G counts devices: groups of experts that lie one after the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moekit.routing import ExpertChoice, Routing, Soft, TokenChoice

GUARD = 1e-20  # added to a token's sum of affinities, so that sigmoids that are all 0 give shares 0, not NaN


def count_BE(expert_TK: Tensor, num_experts: int, counts_TK: Tensor | None, num_units: int) -> Tensor:
    """int64: how many tokens of each unit were sent to each expert, before anything is dropped.

    Args:
        expert_TK: int64, the choices.
        num_experts: E.
        counts_TK: bool, which of them count (``TokenChoice.counts_TK``); None for all.
        num_units: B.
    """
    T = expert_TK.shape[0]
    unit_T = torch.arange(num_units, device=expert_TK.device).repeat_interleave(T // max(num_units, 1))
    slot_TK = expert_TK + num_experts * unit_T[:, None]
    one_TK = torch.ones_like(expert_TK) if counts_TK is None else counts_TK.to(expert_TK.dtype)
    zero_N = torch.zeros(num_units * num_experts, dtype=torch.int64, device=expert_TK.device)
    return zero_N.scatter_add(0, slot_TK.flatten(), one_TK.flatten()).view(num_units, num_experts)


def share_of(count_BE: Tensor, dtype: torch.dtype) -> Tensor:
    """``fbar``: each expert's share of a unit's choices; sums to 1, or to 0 for a unit without tokens."""
    return count_BE.to(dtype) / count_BE.sum(-1, keepdim=True).clamp(min=1)


def mean_score_BE(scores_TE: Tensor, valid_T: Tensor | None, num_units: int, *, normalize: bool) -> Tensor:
    """``P``, differentiable: mean affinity of every expert over **all valid tokens of all units**, by unit.

    So the sum over units is the mean over tokens, and a unit weighs by its tokens.

    Args:
        scores_TE: affinities of all experts, not of the chosen alone.
        valid_T: bool, False for padding, whose affinities may be anything.
        num_units: B.
        normalize: whether a token's affinities are first divided by their sum (as sigmoids need; a softmax sums to 1).
    """
    if valid_T is not None:
        scores_TE = scores_TE.masked_fill(~valid_T[:, None], 0)
    if normalize:
        scores_TE = scores_TE / (scores_TE.sum(-1, keepdim=True) + GUARD)
    T, E = scores_TE.shape
    num_valid = T if valid_T is None else valid_T.sum()
    sum_BE = scores_TE.reshape(num_units, T // max(num_units, 1), E).sum(1)
    return sum_BE / (max(num_valid, 1) if isinstance(num_valid, int) else num_valid.clamp(min=1))


def group_sum_BG(x_BE: Tensor, groups: int) -> Tensor:
    """The sum over the experts of each device, per unit."""
    B, E = x_BE.shape
    return x_BE.view(B, groups, E // groups).sum(-1)


def received_BG(group_TK: Tensor, groups: int, counts_TK: Tensor | None, num_units: int) -> Tensor:
    """int64: how many tokens of each unit each device receives; a token counts once, whatever it uses there.

    Args:
        group_TK: int64, the device of each choice.
        groups: G.
        counts_TK: bool, which choices count (``TokenChoice.counts_TK``); None for all.
        num_units: B.
    """
    T = group_TK.shape[0]
    one_TK = torch.ones_like(group_TK) if counts_TK is None else counts_TK.to(group_TK.dtype)
    uses_TG = torch.zeros(T, groups, dtype=torch.int64, device=group_TK.device).scatter_add(1, group_TK, one_TK)
    return uses_TG.clamp(max=1).view(num_units, T // max(num_units, 1), groups).sum(1)


def valid_B1(valid_T: Tensor | None, num_tokens: int, num_units: int, device: torch.device) -> Tensor:
    """int64 ``[B, 1]``: the valid tokens of each unit."""
    each = num_tokens // max(num_units, 1)
    if valid_T is None:
        return torch.full((num_units, 1), each, dtype=torch.int64, device=device)
    return valid_T.reshape(num_units, each).sum(1, keepdim=True)


def importance_E(routing: Routing) -> Tensor:
    """Differentiable: the gates of each expert, summed over the valid tokens that are sent to it.

    Under soft routing: its weights in all outputs, summed over its slots.

    Raises:
        TypeError: a form of routing that is not known here.
    """
    if isinstance(routing, TokenChoice):
        counts_TK, gate_TK = routing.counts_TK(), routing.gate_TK
        if counts_TK is not None:
            gate_TK = gate_TK.masked_fill(~counts_TK, 0)
        zero_E = torch.zeros(routing.num_experts, dtype=gate_TK.dtype, device=gate_TK.device)
        return zero_E.scatter_add(0, routing.expert_TK.flatten(), gate_TK.flatten())
    if isinstance(routing, ExpertChoice):
        gate_EC = routing.gate_EC
        if routing.valid_T is not None:
            gate_EC = gate_EC.masked_fill(~routing.valid_T[routing.token_EC], 0)
        return gate_EC.sum(1)
    if isinstance(routing, Soft):
        combine_TEP = routing.combine_TEP
        if routing.valid_T is not None:
            combine_TEP = combine_TEP.masked_fill(~routing.valid_T[:, None, None], 0)
        return combine_TEP.sum((0, 2))
    raise TypeError(f"the importance of a {type(routing).__name__} is not defined")
