"""The two factors of balance losses: ``f``, each expert's share of the load, and ``P``, its mean affinity."""

from __future__ import annotations

import torch
from torch import Tensor

from moekit.routing import Routing


def mean_score_BE(routing: Routing, num_units: int, *, normalize: bool) -> Tensor:
    """``P``, differentiable: per unit, each expert's summed affinity over **all** valid tokens.

    It is divided by the number of valid tokens of all units, so that the sum over units is the mean over tokens.

    Args:
        routing: of the tokens.
        num_units: B, equal runs of consecutive tokens that are balanced apart: sequences, or 1 for all tokens.
        normalize: divide a token's affinities by their sum first (sigmoids need it; a softmax sums to 1 already).
    """
    scores_TE = routing.share_TE() if normalize else routing.of_valid(routing.scores_TE)
    T, E = scores_TE.shape
    sum_BE = scores_TE.reshape(num_units, T // max(num_units, 1), E).sum(1)
    return sum_BE / (max(T, 1) if routing.valid_T is None else routing.num_valid().clamp(min=1))


def share_of(load_BE: Tensor, dtype: torch.dtype) -> Tensor:
    """``f``: each expert's share of a unit's load; sums to 1, or to 0 for a unit without tokens."""
    return load_BE.to(dtype) / load_BE.sum(-1, keepdim=True).clamp(min=1)
