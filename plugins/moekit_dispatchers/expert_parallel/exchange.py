"""The exchange: which rows a rank sends where, how they travel, and how what comes back is summed.

G ranks hold X = E / G experts each. N rows are sent, one for each (token, rank), and each names C of the rank's
experts: ``number`` for a choice that is sent, ``number + X`` for a place that is left over.
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
from moekit_dispatchers.grouped.ops import sum_rows, take_rows


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What this rank sends and gets.

    Attributes:
        sends: rows to each rank.
        gets: rows from each rank.
        num_pairs: token-expert pairs in the rows that it gets.
        token_N: int64, the token of each row; rows stand rank by rank, token by token.
        number_NC: int32, what each row names.
        gate_NC: its gates; 0 in a place that is left over.
        by_token_N: int64, the rows listed token by token.
        start_T: int64 ``[T + 1]``, where each token's rows start in that list; last, N.
    """

    sends: list[int]
    gets: list[int]
    num_pairs: int
    token_N: Tensor
    number_NC: Tensor
    gate_NC: Tensor
    by_token_N: Tensor
    start_T: Tensor

    def rows(self, x_TD: Tensor) -> Tensor:
        """``x_ND``, to be sent, in ``row_dtype``; gradients are summed in x's own dtype, in one fixed order."""
        route = (self.token_N, self.by_token_N, self.start_T)
        x_ND: Tensor = _Rows.apply(x_TD, row_dtype(x_TD), *route)  # type: ignore[no-untyped-call]
        return x_ND

    def sum(self, y_NO: Tensor) -> Tensor:
        """``y_TO``: what came back for each token, summed rank by rank; 0 for a token that was not sent."""
        y_TO: Tensor = sum_rows(y_NO, None, self.token_N, self.by_token_N, self.start_T)
        return y_TO


def plan(routing: Routing, group: dist.ProcessGroup) -> Plan:
    """Collects each token's choices by rank, and tells every rank how many rows and pairs it will get.

    Reads two numbers a rank on the host, at once: uneven exchanges need them there.

    Raises:
        ValueError: a soft routing.
    """
    G = group.size()
    sent_TE = sent(routing)
    T, E = sent_TE.shape
    X, C = E // G, choices_of(routing, G)
    reached_TG = reached(sent_TE, G)
    told_G2 = torch.stack([reached_TG.sum(0), sent_TE.reshape(T, G, X).sum((0, 2))], dim=1)
    heard_G2 = torch.empty_like(told_G2)
    dist.all_to_all_single(heard_G2, told_G2, group=group)
    numbers: list[list[list[int]]] = torch.stack([told_G2, heard_G2]).tolist()
    (sends, _), (gets, pairs) = ([list(column) for column in zip(*table, strict=True)] for table in numbers)

    row_N = torch.nonzero_static(reached_TG.T.flatten(), size=sum(sends)).squeeze(1)
    token_N = row_N % max(T, 1)
    cell_N = token_N * G + row_N // max(T, 1)
    left_over_NX = ~sent_TE.reshape(T * G, X).index_select(0, cell_N)
    # Those sent come first, then any others: a row's experts stay distinct, as a routing by token choice has them.
    named_NC = left_over_NX.byte().argsort(dim=1, stable=True)[:, :C]
    home_N, by_token_N = token_N.sort(stable=True)
    return Plan(
        sends=sends,
        gets=gets,
        num_pairs=sum(pairs),
        token_N=token_N,
        number_NC=(named_NC + X * left_over_NX.gather(1, named_NC)).int(),
        gate_NC=_gates(routing).reshape(T * G, X).index_select(0, cell_N).gather(1, named_NC),
        by_token_N=by_token_N,
        start_T=torch.searchsorted(home_N, torch.arange(T + 1, device=home_N.device)),
    )


def _gates(routing: Routing) -> Tensor:
    """``gate_TE``, with a gradient: 0 for a pair that goes nowhere, whatever its gate."""
    pairs, (T, E) = pairs_of(routing), routing.scores_TE.shape
    zero_N = pairs.gate_N.new_zeros(T * (E + 1))  # column E holds what goes nowhere
    return zero_N.scatter(0, pairs.token_N * (E + 1) + pairs.expert_N, pairs.gate_N).view(T, E + 1)[:, :E]


@final
@dataclass(frozen=True, kw_only=True)
class Received(TokenChoice):
    """What the rows of other ranks choose here. Affinities stay where the tokens are: here they are 0.

    Attributes:
        num_pairs: how many choices are sent. The host knows it, so ``pairs`` lists these alone: most places of a row
            may be left over, and no dispatcher shall make rows for them.
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
        )


def received(number_TK: Tensor, gate_TK: Tensor, num_experts: int, num_pairs: int) -> Received:
    """The routing of the rows that came in, among the experts that are here."""
    none_TE = gate_TK.detach().new_zeros(()).expand(gate_TK.shape[0], num_experts)
    return Received(
        logits_TE=none_TE,
        scores_TE=none_TE,
        expert_TK=(number_TK % num_experts).long(),
        gate_TK=gate_TK,
        sent_TK=number_TK < num_experts,
        num_pairs=num_pairs,
    )


class Underway(NamedTuple):
    """Rows on their way.

    Attributes:
        tensors: to be read after ``wait``.
        wait: returns when they are there.
    """

    tensors: tuple[Tensor, ...]
    wait: Callable[[], None]


def exchange(group: dist.ProcessGroup, sends: list[int], gets: list[int], *tensors: Tensor) -> Underway:
    """Sends each tensor's rows to the ranks in order, and begins to get theirs. Gradients travel back the same way.

    Collective: every rank of the group calls it, with as many tensors, also one that has no rows; and every one runs
    its backward, or none.

    Args:
        group: the ranks.
        sends: rows to each rank.
        gets: rows from each.
        tensors: of one number of rows, travelling at the same time; integers have no gradient.
    """
    works: list[dist.Work] = []
    out: tuple[Tensor, ...] = _Exchange.apply(works, group, sends, gets, *tensors)  # type: ignore[no-untyped-call]

    def wait() -> None:
        while works:
            works.pop().wait()

    return Underway(out, wait)


class _Rows(torch.autograd.Function):
    """Rounds T tokens, then takes N rows of them, which is less work. Sums gradients in the tokens' own dtype."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, dtype: torch.dtype, *route: Tensor) -> Tensor:
        ctx.dtype = x_TD.dtype
        ctx.save_for_backward(*route)
        x_ND: Tensor = take_rows(x_TD.to(dtype), *route)
        return x_ND

    @staticmethod
    def backward(ctx: Any, g_ND: Tensor) -> tuple[Tensor | None, ...]:
        return sum_rows(g_ND.to(ctx.dtype), None, *ctx.saved_tensors), None, None, None, None


class _Exchange(torch.autograd.Function):
    """One node for all tensors, so that on every rank their gradients leave in the same order."""

    @staticmethod
    def forward(
        ctx: Any, works: list[dist.Work], group: dist.ProcessGroup, sends: list[int], gets: list[int], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.group, ctx.sends, ctx.gets = group, sends, gets
        out = tuple(t.new_empty(sum(gets), *t.shape[1:]) for t in tensors)
        for into, t in zip(out, tensors, strict=True):
            work = dist.all_to_all_single(into, t.contiguous(), gets, sends, group=group, async_op=True)
            works.append(cast(dist.Work, work))
        ctx.mark_non_differentiable(*(t for t in out if not t.is_floating_point()))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[4:]
        asked = tuple(grad for grad, need in zip(grads, wanted, strict=True) if need)
        underway = exchange(ctx.group, ctx.gets, ctx.sends, *asked)
        underway.wait()
        back = iter(underway.tensors)
        return (None, None, None, None, *(next(back) if need else None for need in wanted))
