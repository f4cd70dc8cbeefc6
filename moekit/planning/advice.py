"""What to change when a layout does not fit: tried, not guessed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from moekit.planning.plan import Plan, Planner, Row
from moekit.planning.request import Request

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
    """The changes that make some layout fit, the smallest first; if none does, the one that comes nearest."""
    tried = []
    for what, request, recompute in _changes(plan):
        other = planner.plan(request, recompute)
        best = min(other.rows, key=lambda row: row.memory.total)
        tried.append(Advice(what=what, row=best, fits=other.fits(best)))
        if tried[-1].fits:
            break
    fitting = [advice for advice in tried if advice.fits]
    return fitting or sorted(tried, key=lambda advice: advice.row.memory.total)[:1]


def _changes(plan: Plan) -> Iterator[tuple[str, Request, str]]:
    """From small to large: recompute more; smaller micro-batches, and more of them; twice the devices, and again."""
    request, recompute = plan.request, plan.recompute
    words: list[str] = []
    for policy in POLICIES[POLICIES.index(recompute) + 1 :] if recompute in POLICIES else ():
        recompute, words = policy, [f"--recompute {policy}"]
        yield " ".join(words), request, recompute
    while request.batch > 1:
        half = request.batch // 2
        request = replace(request, batch=half, accumulate=request.accumulate * (request.batch // half))
        yield " ".join([*words, f"--batch {half} --accumulate {request.accumulate}"]), request, recompute
    if request.batch != plan.request.batch:
        words.append(f"--batch {request.batch} --accumulate {request.accumulate}")
    for _ in range(6):
        request = replace(request, devices=2 * request.devices)
        yield " ".join([*words, f"--devices {request.devices}"]), request, recompute
