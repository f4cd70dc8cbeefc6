"""What to change when a layout does not fit: tried, not guessed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace

from moekit.planning.plan import Plan, Planner, Row
from moekit.planning.request import MOST, Request

POLICIES = ("none", "experts", "blocks")


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A change.

    Attributes:
        what: the change, as it is written on the command line.
        row: the layout that it leads to.
        fits: whether that fits.
    """

    what: str
    row: Row
    fits: bool


def advise(planner: Planner, plan: Plan) -> list[Advice]:
    """The changes that make some layout fit, the smallest first; if none does, the one that comes nearest.

    From small to large: recompute more; smaller micro-batches, and more of them; twice the devices, and again. Each
    recomputation and each size of micro-batch takes a pass, so that of the sizes few are tried: a smaller one never
    takes more, and the largest that fits is found by bisection.
    """
    tried: list[Advice] = []

    def attempt(change: _Change) -> Advice:
        other = planner.plan(change.request, change.recompute)
        best = min(other.rows, key=lambda row: row.memory.total)
        tried.append(Advice(what=" ".join(change.words), row=best, fits=other.fits(best)))
        return tried[-1]

    change = _Change(words=(), request=plan.request, recompute=plan.recompute)
    for more in _recomputing(change):
        change = more
        if attempt(change).fits:
            return tried[-1:]
    if sizes := list(_halving(change)):
        change = sizes[-1]
        if attempt(change).fits:
            first = bisect_left(sizes, True, hi=len(sizes) - 1, key=lambda size: attempt(size).fits)
            return [attempt(sizes[first])]
    for more in _doubling(change):
        if attempt(more).fits:
            return tried[-1:]
    return sorted(tried, key=lambda advice: advice.row.memory.total)[:1]


@dataclass(frozen=True, kw_only=True)
class _Change:
    words: tuple[str, ...]
    request: Request
    recompute: str


def _recomputing(change: _Change) -> Iterator[_Change]:
    """The policies that recompute more."""
    after = POLICIES.index(change.recompute) + 1 if change.recompute in POLICIES else len(POLICIES)
    for policy in POLICIES[after:]:
        yield replace(change, recompute=policy, words=(*change.words, f"--recompute {policy}"))


def _halving(change: _Change) -> Iterator[_Change]:
    """Half the micro-batch, and half of that, to one sequence; as many tokens a step."""
    request = change.request
    while request.batch > 1 and 3 * request.accumulate <= MOST:
        half = request.batch // 2
        request = replace(request, batch=half, accumulate=request.accumulate * (request.batch // half))
        word = f"--batch {half} --accumulate {request.accumulate}"
        yield replace(change, request=request, words=(*change.words, word))


def _doubling(change: _Change) -> Iterator[_Change]:
    """Twice the devices, and twice that, six times."""
    request = change.request
    for doubled in [request.devices << i for i in range(1, 7) if request.devices << i <= MOST]:
        request = replace(request, devices=doubled)
        yield replace(change, request=request, words=(*change.words, f"--devices {request.devices}"))
