"""A crew: several threads that walk side by side, each over its own experts, each with one thread of torch's own.

Two threads that share every small product wait for each other at each; two that share the experts out do not.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
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
    if threads < 2 or not total:
        return whole
    cuts: list[Share] = []
    first = start = row = 0
    for e, size in enumerate(sizes):
        # A cut goes where it is nearest to even: before an expert that would go beyond by more than it is short of.
        if e > first and len(cuts) < threads - 1 and (2 * row + size) * threads > 2 * total * (len(cuts) + 1):
            cuts.append(Share(first, e, start))
            first, start = e, row
        row += size
    cuts.append(Share(first, len(sizes), start))
    most = max(sum(sizes[share.first : share.last]) for share in cuts)
    return cuts if most * threads <= UNEVEN * total else whole


def side_by_side(work: Callable[[Share], _T], among: list[Share]) -> list[_T]:
    """``work`` for each share, in a thread of its own where there are several; the answers in their order.

    Threads know neither the caller's grad mode nor its inference mode: inside, nothing is recorded. Several callers
    at once share the crew: each waits for its own answers alone. ``work`` must not call this function.
    """
    if len(among) == 1:
        return [work(among[0])]
    inference = torch.is_inference_mode_enabled()

    def alone(share: Share) -> _T:
        with torch.inference_mode() if inference else torch.no_grad():
            return work(share)

    return list(_crew(len(among), os.getpid()).map(alone, among))


@lru_cache(maxsize=4)
def _crew(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that stay: starting them takes longer than a small layer. A forked process, which has none, gets its own.

    All of them start here, so that what they say to torch is over before anybody goes on: the number of threads that a
    thread sets for itself is also what threads that start later take as theirs.

    Args:
        threads: how many.
        process: whose.
    """
    before, all_here = torch.get_num_threads(), threading.Barrier(threads)
    crew = ThreadPoolExecutor(threads, "moekit-crew", initializer=_alone)
    list(crew.map(lambda _: all_here.wait(), range(threads)))
    torch.set_num_threads(before)
    return crew


def _alone() -> None:
    torch.get_num_threads()  # a thread takes its number over when it is first asked, which would undo the next line
    torch.set_num_threads(1)
