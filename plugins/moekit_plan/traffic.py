"""Bytes and messages of expert parallelism, for a number of rows. Nothing is communicated.

The rows are known exactly for a given routing (``rows_of``), and expected for given sizes
(``moekit_plan.reach``).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from moekit.parallel.traffic import reached, sent
from moekit.routing import Routing

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
        rows: sent to other ranks.
        size: number of ranks that exchange rows, this one included.
        choices: experts per row (``moekit.parallel.traffic.choices_of``).
        dim: D.
        out_dim: O; default: D.
        element_bytes: of a number in a row (``moekit.parallel.traffic.row_dtype``).
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
