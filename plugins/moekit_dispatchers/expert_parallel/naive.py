"""Expert parallelism as loops over ranks, tokens and choices, in one process: the reference implementation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor


def naive_exchange(
    x: Sequence[Tensor],
    choices: Sequence[Sequence[Sequence[tuple[int, Tensor]]]],
    experts: Sequence[Sequence[Callable[[Tensor], Tensor]]],
    out_dim: int,
) -> tuple[list[Tensor], list[list[int]]]:
    """Every rank's combined outputs, and how many rows each rank sends to each.

    Args:
        x: ``x_TD`` of every rank.
        choices: for each rank and token the experts that it is sent to (numbers among all E), with their gates.
        experts: for each rank those that it holds, ``x_D -> y_O``; expert e is on rank ``e // (E / ranks)``.
        out_dim: O.

    Returns:
        ``y_TO`` of every rank; ``sent[source][owner]``.
    """
    ranks, held = range(len(x)), len(experts[0])
    inbox: list[list[tuple[int, int, Tensor, list[tuple[int, Tensor]]]]] = [[] for _ in ranks]
    for source in ranks:
        for t, x_D in enumerate(x[source]):
            for owner in ranks:
                named = [(e % held, gate) for e, gate in choices[source][t] if e // held == owner]
                if named:
                    inbox[owner].append((source, t, x_D, named))
    y = [x_TD.new_zeros(len(x_TD), out_dim) for x_TD in x]
    sent = [[0 for _ in ranks] for _ in ranks]
    for owner in ranks:
        for source, t, x_D, named in inbox[owner]:
            sum_O = x_D.new_zeros(out_dim)
            for e, gate in named:
                sum_O = sum_O + gate * experts[owner][e](x_D)
            y[source] = y[source].index_add(0, x_D.new_tensor([t]).long(), sum_O[None])
            sent[source][owner] += 1
    return y, sent
