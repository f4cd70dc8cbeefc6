"""The traffic of expert parallelism: exact for a given routing, expected for given sizes. Nothing is communicated.

A token is sent once to each other rank that holds at least one of its experts (DeepSeek-V3, section 3.2.2;
arXiv 2412.19437).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from moekit.routing import Routing, TokenChoice, pairs_of

INDEX_BYTES = 4  # of an expert's index, int32
COUNT_BYTES = 16  # sent to each rank before the rows: the number of rows and of pairs, int64


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What the tokens of one rank send and receive over the network, in one pass through one layer.

    Attributes:
        rows: rows sent, one for each pair (token, other rank).
        forward: bytes of dispatch and combine.
        backward: bytes of their gradients.
        forward_messages: messages that this rank sends: one to each other rank in every all-to-all.
        backward_messages: the same for the gradients.
    """

    rows: float
    forward: float
    backward: float
    forward_messages: int
    backward_messages: int

    def __add__(self, other: Traffic) -> Traffic:
        """The traffic of both: of several layers or micro-batches."""
        return Traffic(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


def traffic(
    rows: float,
    *,
    size: int,
    choices: int,
    dim: int,
    out_dim: int = 0,
    element_bytes: int = 4,
    out_element_bytes: int = 0,
    gate_bytes: int = 4,
) -> Traffic:
    """The traffic of a number of rows.

    Args:
        rows: sent to other ranks (``rows_of``).
        size: size of the expert group.
        choices: experts per row (``choices_of``).
        dim: D.
        out_dim: O; default: D.
        element_bytes: of a number in a row (``row_dtype``).
        out_element_bytes: of a number in an expert's output; default: ``element_bytes``.
        gate_bytes: of a gate: 4, or 8 in an fp64 model.
    """
    dispatched, combined = dim * element_bytes, (out_dim or dim) * (out_element_bytes or element_bytes)
    gates, peers = choices * gate_bytes, size - 1
    return Traffic(
        rows=rows,
        forward=rows * (dispatched + gates + choices * INDEX_BYTES + combined) + peers * COUNT_BYTES,
        backward=rows * (combined + dispatched + gates),
        forward_messages=5 * peers,  # counts, tokens, gates, indices; outputs
        backward_messages=3 * peers,  # of outputs; of tokens, of gates
    )


def row_dtype(x_TD: Tensor) -> torch.dtype:
    """The dtype in which a token is sent: under autocast an fp32 token in autocast's dtype, any other in its own.

    An expert's first operation is a product, for which autocast rounds the token anyway. To round it before the
    all-to-all halves the bytes, also those of the gradient.
    """
    device = x_TD.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on and x_TD.dtype == torch.float32 else x_TD.dtype


def rows_of(routing: Routing, size: int, rank: int) -> int:
    """The number of rows that one rank of an expert group sends to the others.

    Args:
        routing: of the rank's tokens, after the dispatcher's limits (``Dispatcher.limit``): dropped pairs are not sent.
        size: size of the expert group, whose ranks hold equal, consecutive parts of the experts.
        rank: in the expert group, 0 to size - 1.

    Raises:
        ValueError: a soft routing.
    """
    reached_TG = reached(sent(routing), size)
    return int(reached_TG.sum()) - int(reached_TG[:, rank].sum())


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
