"""Changes to try when no layout fits. Each is planned before it is proposed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace

from moekit_plan.plan import LayoutPlan, RunPlan, RunPlanner
from moekit_plan.request import MAX_COUNT, PlanRequest

POLICIES = ("none", "experts", "blocks")


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A change.

    Attributes:
        what: the change, as command-line options.
        row: with it, the layout that takes least.
        fits: whether that layout fits.
    """

    what: str
    row: LayoutPlan
    fits: bool


def advise(planner: RunPlanner, plan: RunPlan) -> list[Advice]:
    """The smallest change with which some layout fits; if none fits, the change that takes least.

    From small to large: recompute more; smaller micro-batches, and more of them; two times the devices, and so on. Each
    policy and each size of micro-batch takes a pass. A smaller micro-batch never takes more, so the largest that fits
    is found by bisection.
    """
    tried: list[Advice] = []

    def attempt(change: _Change) -> Advice:
        other = planner.plan(change.request, change.recompute)
        best = min(other.rows, key=lambda row: row.memory.total)
        tried.append(Advice(what=" ".join(change.options), row=best, fits=other.fits(best)))
        return tried[-1]

    change = _Change(options=(), request=plan.request, recompute=plan.recompute)
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
    options: tuple[str, ...]
    request: PlanRequest
    recompute: str


def _recomputing(change: _Change) -> Iterator[_Change]:
    """The policies that recompute more."""
    after = POLICIES.index(change.recompute) + 1 if change.recompute in POLICIES else len(POLICIES)
    for policy in POLICIES[after:]:
        yield replace(change, recompute=policy, options=(*change.options, f"--recompute {policy}"))


def _halving(change: _Change) -> Iterator[_Change]:
    """Halved micro-batches, down to one sequence, with as many tokens per step."""
    request = change.request
    while request.batch > 1 and 3 * request.accumulate <= MAX_COUNT:
        half = request.batch // 2
        request = replace(request, batch=half, accumulate=request.accumulate * (request.batch // half))
        batch = f"--batch {half} --accumulate {request.accumulate}"
        yield replace(change, request=request, options=(*change.options, batch))


def _doubling(change: _Change) -> Iterator[_Change]:
    """Doubled numbers of devices, up to 64 times."""
    request = change.request
    for doubled in [request.devices << i for i in range(1, 7) if request.devices << i <= MAX_COUNT]:
        request = replace(request, devices=doubled)
        yield replace(change, request=request, options=(*change.options, f"--devices {request.devices}"))
