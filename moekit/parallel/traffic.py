"""What expert parallelism sends for a given routing. Nothing is communicated here.

A token is sent once to each other rank that holds at least one of its experts (DeepSeek-V3, section 3.2.2;
arXiv 2412.19437).
"""

from __future__ import annotations

import torch
from torch import Tensor

from moekit.routing import Routing, TokenChoice, pairs_of


def row_dtype(x_TD: Tensor) -> torch.dtype:
    """The dtype in which a token is sent: under autocast an fp32 token in autocast's dtype, any other in its own.

    An expert's first operation is a product, for which autocast rounds the token anyway. To round it before the
    all-to-all halves the bytes, also those of the gradient.
    """
    device = x_TD.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on and x_TD.dtype == torch.float32 else x_TD.dtype


def choices_of(routing: Routing, size: int) -> int:
    """The number of experts sent with a row: K, at most those of a rank; in expert choice, all those of a rank."""
    held = routing.num_experts // size
    return min(routing.expert_TK.shape[1], held) if isinstance(routing, TokenChoice) else held


def sent(routing: Routing) -> Tensor:
    """``sent_TE``, bool: whether a token is sent to an expert.

    Raises:
        ValueError: a soft routing.
    """
    pairs, (T, E) = pairs_of(routing), routing.scores_TE.shape
    # column E collects pairs that are not sent
    sent_N = torch.zeros(T * (E + 1), dtype=torch.bool, device=pairs.expert_N.device)
    return sent_N.index_fill(0, pairs.token_N * (E + 1) + pairs.expert_N, True).view(T, E + 1)[:, :E]


def reached(sent_TE: Tensor, size: int) -> Tensor:
    """``reached_TG``, bool: whether a token is sent to any expert of rank G, of ``size`` ranks."""
    T, E = sent_TE.shape
    return sent_TE.reshape(T, size, E // size).any(2)
