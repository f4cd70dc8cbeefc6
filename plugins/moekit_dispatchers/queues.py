"""Positions in queues, for dispatchers that drop: pairs queue for their expert or device.

Shapes are static and nothing is read on the host.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from moekit.routing import TokenChoice
from moekit_dispatchers.grouped.ops import narrow_keys


def places(target_GN: Tensor, queue_GN: Tensor, num_targets: int) -> Tensor:
    """``place_GN``: how many pairs of the same group and target (expert or device) are before a pair.

    Args:
        target_GN: int64, the target of each of a group's N pairs; ``num_targets`` for a pair without one.
        queue_GN: int64, each group's pairs in queue order.
        num_targets: the number of experts or devices.
    """
    G, N = target_GN.shape
    key_GN = narrow_keys(target_GN.gather(1, queue_GN), num_targets)
    key_GN, order_GN = key_GN.sort(dim=1, stable=True)
    targets_X = torch.arange(num_targets + 1, dtype=key_GN.dtype, device=key_GN.device)
    first_GX = torch.searchsorted(key_GN, targets_X.expand(G, -1).contiguous())
    place_GN = torch.arange(N, device=key_GN.device) - first_GX.gather(1, key_GN.long())
    return torch.empty_like(place_GN).scatter(1, queue_GN.gather(1, order_GN), place_GN)


def affinities(routing: TokenChoice) -> Tensor:
    """``affinity_TK`` of each choice, for ranking: -inf for a choice that does not count, and for NaN."""
    affinity_TK = routing.scores_TE.detach().gather(1, routing.expert_TK)
    ranked_TK = affinity_TK == affinity_TK  # so that a NaN displaces no other token
    counts_TK = routing.counts_TK()
    if counts_TK is not None:
        ranked_TK = ranked_TK & counts_TK
    return affinity_TK.where(ranked_TK, -torch.inf)


def as_fraction(factor: float) -> tuple[int, int]:
    """The fraction that a factor stands for: the nearest one whose denominator is at most ten million.

    So both ways to give a factor are exact: as a decimal of up to seven digits (1.1 is 11/10, and 1.1 · 10 rounds up to
    11, not 12), and as a computed quotient such as ``C · E / (K · S)``, also where floats round on the way.
    """
    return Fraction(factor).limit_denominator(10**7).as_integer_ratio()


def length(num_tokens: int, num_sequences: int) -> int:
    """S: tokens of one sequence.

    Raises:
        ValueError: ``num_sequences`` does not divide the tokens.
    """
    if num_sequences < 1 or num_tokens % num_sequences:
        raise ValueError(f"{num_tokens} tokens are not {num_sequences} sequences of one length; give num_sequences=")
    return num_tokens // num_sequences
