"""What expert parallelism sends: exact for a routing at hand, expected for sizes alone. Nothing is communicated.

A token is sent once to each rank that holds an expert of its choice, however many it holds (DeepSeek-V3, section 3.2.2;
arXiv 2412.19437). What stays on its own rank is not sent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moekit.routing import Routing, TokenChoice, pairs_of

NUMBER_BYTES = 4  # of an expert's number, int32
COUNT_BYTES = 16  # told to each rank before the rows: how many rows and pairs, int64


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What the tokens of one rank send and get back over the network, in one pass through one layer.

    Attributes:
        rows: tokens sent, one for each (token, other rank).
        forward: bytes there and back.
        backward: bytes of the gradients, back and there.
        forward_messages: messages that this rank sends, one to each other rank for every exchange.
        backward_messages: the same for the gradients.
    """

    rows: float
    forward: float
    backward: float
    forward_messages: int
    backward_messages: int

    def __add__(self, other: Traffic) -> Traffic:
        """Both: of several layers, or micro-batches."""
        return Traffic(
            rows=self.rows + other.rows,
            forward=self.forward + other.forward,
            backward=self.backward + other.backward,
            forward_messages=self.forward_messages + other.forward_messages,
            backward_messages=self.backward_messages + other.backward_messages,
        )


def traffic(
    rows: float,
    *,
    size: int,
    choices: int,
    dim: int,
    out_dim: int = 0,
    element: int = 4,
    out_element: int = 0,
    gate_element: int = 4,
) -> Traffic:
    """The traffic of so many rows.

    Args:
        rows: sent to other ranks (``rows_of``, or expected from ``RouterSpec.ranks_reached``).
        size: ranks that share the experts.
        choices: experts that a row names (``choices_of``).
        dim: D.
        out_dim: O; D when left out.
        element: bytes of one number of a token that is sent (``row_dtype``).
        out_element: bytes of one number of an expert's output; ``element`` when left out.
        gate_element: bytes of a gate: 4, or 8 in an fp64 model.
    """
    there, back = dim * element, (out_dim or dim) * (out_element or element)
    gates, peers = choices * gate_element, size - 1
    return Traffic(
        rows=rows,
        forward=rows * (there + gates + choices * NUMBER_BYTES + back) + peers * COUNT_BYTES,
        backward=rows * (back + there + gates),
        forward_messages=5 * peers,  # counts, tokens, gates, numbers; outputs
        backward_messages=3 * peers,  # of outputs; of tokens, of gates
    )


def row_dtype(x_TD: Tensor) -> torch.dtype:
    """What a token is sent in: autocast's dtype where autocast is on and the token is in fp32, else its own.

    An expert begins with a product, and autocast rounds what goes into that: rounded before it is sent it costs half,
    and so does its gradient.
    """
    device = x_TD.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on and x_TD.dtype == torch.float32 else x_TD.dtype


def rows_of(routing: Routing, size: int, rank: int) -> int:
    """How many rows the tokens of rank ``rank`` of an expert group of ``size`` ranks send to the others.

    Args:
        routing: within the dispatcher's limits (``Dispatcher.limit``): what is dropped is not sent.
        size: ranks that share the experts, in order and in equal parts.
        rank: 0 to size - 1.

    Raises:
        ValueError: a soft routing.
    """
    reached_TG = reached(sent(routing), size)
    return int(reached_TG.sum()) - int(reached_TG[:, rank].sum())


def choices_of(routing: Routing, size: int) -> int:
    """How many experts a row names: K, but never more than a rank holds; all that it holds where experts choose."""
    held = routing.num_experts // size
    return min(routing.expert_TK.shape[1], held) if isinstance(routing, TokenChoice) else held


def sent(routing: Routing) -> Tensor:
    """``sent_TE``, bool: the pairs that count.

    Raises:
        ValueError: a soft routing.
    """
    pairs, (T, E) = pairs_of(routing), routing.scores_TE.shape
    # column E holds what goes nowhere
    sent_N = torch.zeros(T * (E + 1), dtype=torch.bool, device=pairs.expert_N.device)
    return sent_N.index_fill(0, pairs.token_N * (E + 1) + pairs.expert_N, True).view(T, E + 1)[:, :E]


def reached(sent_TE: Tensor, size: int) -> Tensor:
    """``reached_TG``, bool: whether a token is sent to any expert of each of ``size`` ranks."""
    T, E = sent_TE.shape
    return sent_TE.reshape(T, size, E // size).any(2)
