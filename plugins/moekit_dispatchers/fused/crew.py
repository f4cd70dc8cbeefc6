"""A crew: several threads that walk side by side, each over its own experts, each with one thread of torch's own.

Two threads that share every small product wait for each other at each; two that share the experts out do not.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import torch

_T = TypeVar("_T")

WORTH_A_CREW = 1 << 31
"""Multiply-adds of the first product, over all rows, from which a crew is faster. Measured: docs/benchmarks.md."""

UNEVEN = 1.25
"""How much more than its even share of the rows a thread may get; above that, threads that wait cost more."""


class Share(NamedTuple):
    """Experts ``first`` to ``last - 1``, whose rows begin at ``row``."""

    first: int
    last: int
    row: int


def shares(sizes: list[int], threads: int) -> list[Share]:
    """The experts cut into at most so many runs of about as many rows; one run where that cannot be even.

    Args:
        sizes: rows of each expert, in order.
        threads: how many runs are wanted.
    """
    total, whole = sum(sizes), [Share(0, len(sizes), 0)]
    cuts, row = whole[:], 0
    if threads < 2 or not total:
        return whole
    cuts = []
    first = start = 0
    for e, size in enumerate(sizes):
        row += size
        if row * threads >= total * (len(cuts) + 1) and len(cuts) < threads - 1:
            cuts.append(Share(first, e + 1, start))
            first, start = e + 1, row
    cuts.append(Share(first, len(sizes), start))
    most = max(sum(sizes[share.first : share.last]) for share in cuts)
    return cuts if most * threads <= UNEVEN * total else whole


def side_by_side(work: Callable[[Share], _T], among: list[Share]) -> list[_T]:
    """``work`` for each share, in a thread of its own where there are several; the answers in their order.

    Threads know neither the caller's grad mode nor its inference mode: inside, nothing is recorded.
    """
    if len(among) == 1:
        return [work(among[0])]
    threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()

    def alone(share: Share) -> _T:
        torch.set_num_threads(1)  # of this thread; the caller's own count stays
        with torch.inference_mode() if inference else torch.no_grad():
            return work(share)

    try:
        with ThreadPoolExecutor(len(among)) as crew:
            return list(crew.map(alone, among))
    finally:
        torch.set_num_threads(threads)  # what threads that start later take as theirs
