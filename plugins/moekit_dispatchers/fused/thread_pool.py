"""A thread pool that computes experts in parallel: each thread has its own experts and runs torch on one thread.

Threads that split every small product wait for each other at each one; threads that split the experts do not.
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

PARALLEL_FROM = 1 << 31
"""Multiply-adds of the first product, over all rows, from which the pool is faster. Measured: docs/benchmarks.md."""

MOST_UNEVEN = 1.25
"""The most rows that a thread may get, over its even share; above that, idle threads cost more than the pool saves."""


class Share(NamedTuple):
    """The experts of one thread, ``first`` to ``last - 1``, whose rows begin at ``row``."""

    first: int
    last: int
    row: int


def shares(sizes: list[int], threads: int) -> list[Share]:
    """The experts, of ``sizes`` rows each, split into at most ``threads`` runs with about equal rows.

    One run if they would be too uneven.
    """
    total, whole = sum(sizes), [Share(0, len(sizes), 0)]
    if threads < 2 or not total:
        return whole
    runs: list[Share] = []
    first = start = row = 0
    for e, size in enumerate(sizes):
        # A run ends nearest to its even share: before expert e if e would exceed it by more than is missing without e.
        if e > first and len(runs) < threads - 1 and (2 * row + size) * threads > 2 * total * (len(runs) + 1):
            runs.append(Share(first, e, start))
            first, start = e, row
        row += size
    runs.append(Share(first, len(sizes), start))
    most = max(sum(sizes[share.first : share.last]) for share in runs)
    return runs if most * threads <= MOST_UNEVEN * total else whole


def run_shares(work: Callable[[Share], _T], parts: list[Share]) -> list[_T]:
    """``work`` for each share, each in a thread of its own if there are several; results in the order of ``parts``.

    The pool's threads do not inherit the caller's grad mode or inference mode, so this sets them: nothing is recorded
    for autograd. Several callers can share the pool; each waits for its own results alone. ``work`` must not call this
    function.
    """
    if len(parts) == 1:
        return [work(parts[0])]
    inference = torch.is_inference_mode_enabled()

    def run(share: Share) -> _T:
        with torch.inference_mode() if inference else torch.no_grad():
            return work(share)

    return list(_thread_pool(len(parts), os.getpid()).map(run, parts))


@lru_cache(maxsize=4)
def _thread_pool(threads: int, process: int) -> ThreadPoolExecutor:
    """A pool that is kept, because starting threads takes longer than a small layer; one per process, for forks.

    All threads start here: ``torch.set_num_threads`` in one thread also changes the default of threads that start
    later, so the caller's number is restored after the last of them has set its own.
    """
    before, all_started = torch.get_num_threads(), threading.Barrier(threads)
    pool = ThreadPoolExecutor(threads, "moekit-experts", initializer=_use_one_thread)
    list(pool.map(lambda _: all_started.wait(), range(threads)))
    torch.set_num_threads(before)
    return pool


def _use_one_thread() -> None:
    torch.get_num_threads()  # torch initialises a thread's number at the first query, which would undo the next line
    torch.set_num_threads(1)
