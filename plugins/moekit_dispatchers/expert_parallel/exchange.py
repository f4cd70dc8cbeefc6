"""The all-to-all exchange: which rows a rank sends to which rank, and how returned rows are summed by token.

G ranks hold X = E / G experts each. N rows are sent, one for each (token, rank). Each row has C places for numbers of
that rank's experts: ``number`` for a choice that is sent, ``number + X`` in an unused place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast, final

import torch
import torch.distributed as dist
from torch import Tensor

from moekit.parallel.traffic import choices_of, reached, row_dtype, sent
from moekit.routing import Pairs, Routing, TokenChoice, pairs_of
from moekit_dispatchers.grouped.rows import ByToken, sum_rows, take_rows


@dataclass(frozen=True, kw_only=True)
class ExchangePlan:
    """What this rank sends and receives.

    Attributes:
        send_counts: rows to each rank.
        receive_counts: rows from each rank.
        num_pairs: token-expert pairs in the rows received.
        number_NC: int32, the expert numbers of each row.
        gate_NC: their gates; 0 in an unused place.
        by_token: the token of each row, and the rows of each token; rows are ordered by rank, then by token.
    """

    send_counts: list[int]
    receive_counts: list[int]
    num_pairs: int
    number_NC: Tensor
    gate_NC: Tensor
    by_token: ByToken

    def rows(self, x_TD: Tensor) -> Tensor:
        """``x_ND``: the rows to send, in ``row_dtype``. Gradients are summed in x's own dtype, in a fixed order."""
        x_ND: Tensor = take_rows(x_TD, *self.by_token, row_dtype(x_TD))
        return x_ND

    def sum(self, y_NO: Tensor) -> Tensor:
        """``y_TO``: each token's returned rows, summed in the order of ranks; 0 for a token that was not sent."""
        y_TO: Tensor = sum_rows(y_NO, None, *self.by_token, y_NO.dtype)
        return y_TO


def plan_exchange(routing: Routing, group: dist.ProcessGroup) -> ExchangePlan:
    """Collects each token's choices by rank, and exchanges the numbers of rows and pairs with every rank.

    Reads both numbers of every rank on the host in one go: ``all_to_all_single`` needs uneven sizes there.

    Raises:
        ValueError: a soft routing.
    """
    G = group.size()
    sent_TE = sent(routing)
    T, E = sent_TE.shape
    X, C = E // G, choices_of(routing, G)
    reached_TG = reached(sent_TE, G)
    counts_G2 = torch.stack([reached_TG.sum(0), sent_TE.reshape(T, G, X).sum((0, 2))], dim=1)
    received_G2 = torch.empty_like(counts_G2)
    dist.all_to_all_single(received_G2, counts_G2, group=group)
    tables: list[list[list[int]]] = torch.stack([counts_G2, received_G2]).tolist()
    (send_counts, _), (receive_counts, pairs) = ([list(col) for col in zip(*table, strict=True)] for table in tables)

    row_N = torch.nonzero_static(reached_TG.T.flatten(), size=sum(send_counts)).squeeze(1)
    token_N = row_N % max(T, 1)
    cell_N = token_N * G + row_N // max(T, 1)
    unused_NX = ~sent_TE.reshape(T * G, X).index_select(0, cell_N)
    # Choices that are sent come first, others fill the row: its experts must be distinct, as token choice requires.
    expert_NC = unused_NX.byte().argsort(dim=1, stable=True)[:, :C]
    sorted_N, by_token_N = token_N.sort(stable=True)
    start_T = torch.searchsorted(sorted_N, torch.arange(T + 1, device=sorted_N.device))
    return ExchangePlan(
        send_counts=send_counts,
        receive_counts=receive_counts,
        num_pairs=sum(pairs),
        number_NC=(expert_NC + X * unused_NX.gather(1, expert_NC)).int(),
        gate_NC=_gates(routing).reshape(T * G, X).index_select(0, cell_N).gather(1, expert_NC),
        by_token=ByToken(token_N, by_token_N, start_T, all_sent=True),
    )


def _gates(routing: Routing) -> Tensor:
    """``gate_TE``, with a gradient; 0 for a pair that goes nowhere, whatever its gate."""
    pairs, (T, E) = pairs_of(routing), routing.scores_TE.shape
    zero_N = pairs.gate_N.new_zeros(T * (E + 1))  # column E takes the pairs that go nowhere
    return zero_N.scatter(0, pairs.token_N * (E + 1) + pairs.expert_N, pairs.gate_N).view(T, E + 1)[:, :E]


@final
@dataclass(frozen=True, kw_only=True)
class Received(TokenChoice):
    """The choices of received rows among this rank's experts. Affinities are not exchanged: here they are 0.

    Attributes:
        num_pairs: how many choices are sent, as a number on the host. With it ``pairs`` lists these alone, so that no
            dispatcher computes rows for unused places, which may be most of them.
    """

    num_pairs: int

    def pairs(self) -> Pairs:
        """The choices that are sent, row by row."""
        assert self.sent_TK is not None
        pair_N = torch.nonzero_static(self.sent_TK.flatten(), size=self.num_pairs).squeeze(1)
        return Pairs(
            token_N=pair_N // self.expert_TK.shape[1],
            expert_N=self.expert_TK.flatten().index_select(0, pair_N),
            gate_N=self.gate_TK.flatten().index_select(0, pair_N),
        ).complete()


def received(number_TK: Tensor, gate_TK: Tensor, num_experts: int, num_pairs: int) -> Received:
    """The routing of the received rows among this rank's experts."""
    none_TE = gate_TK.detach().new_zeros(()).expand(gate_TK.shape[0], num_experts)
    return Received(
        logits_TE=none_TE,
        scores_TE=none_TE,
        expert_TK=(number_TK % num_experts).long(),
        gate_TK=gate_TK,
        sent_TK=number_TK < num_experts,
        num_pairs=num_pairs,
    )


class Pending(NamedTuple):
    """An exchange that is in progress.

    Attributes:
        tensors: the received tensors, valid after ``wait``.
        wait: blocks until they are complete.
    """

    tensors: tuple[Tensor, ...]
    wait: Callable[[], None]


def exchange(group: dist.ProcessGroup, send_counts: list[int], receive_counts: list[int], *tensors: Tensor) -> Pending:
    """Starts an all-to-all of each tensor's rows, which are ordered by rank. Backward exchanges gradients in reverse.

    Collective: every rank of the group calls it with the same number of tensors, even without rows, and either all
    ranks run its backward or none does.

    Args:
        group: the ranks.
        send_counts: rows to each rank.
        receive_counts: rows from each rank.
        tensors: with equal numbers of rows, sent at the same time; integer tensors have no gradient.
    """
    works: list[dist.Work] = []
    out: tuple[Tensor, ...] = _Exchange.apply(works, group, send_counts, receive_counts, *tensors)  # type: ignore[no-untyped-call]

    def wait() -> None:
        while works:
            works.pop().wait()

    return Pending(out, wait)


class _Exchange(torch.autograd.Function):
    """One autograd node for all tensors, so that every rank exchanges their gradients in the same order."""

    @staticmethod
    def forward(
        ctx: Any,
        works: list[dist.Work],
        group: dist.ProcessGroup,
        send_counts: list[int],
        receive_counts: list[int],
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.group, ctx.send_counts, ctx.receive_counts = group, send_counts, receive_counts
        out = tuple(t.new_empty(sum(receive_counts), *t.shape[1:]) for t in tensors)
        for into, t in zip(out, tensors, strict=True):
            counts = (receive_counts, send_counts)
            work = dist.all_to_all_single(into, t.contiguous(), *counts, group=group, async_op=True)
            works.append(cast(dist.Work, work))
        ctx.mark_non_differentiable(*(t for t in out if not t.is_floating_point()))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[4:]
        needed = tuple(grad for grad, need in zip(grads, needs, strict=True) if need)
        pending = exchange(ctx.group, ctx.receive_counts, ctx.send_counts, *needed)
        pending.wait()
        returned = iter(pending.tensors)
        return (None, None, None, None, *(next(returned) if need else None for need in needs))
