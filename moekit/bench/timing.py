"""Variants that take turns, timed forward and backward; and the ratios between them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way of doing the work.

    Attributes:
        name: how it is called.
        forward: one forward pass; gives what is differentiated.
        leaves: what gradients are taken of.
        weights: tensors that lie in memory whether or not there is a backward pass.
        dropped: counts the pairs that one forward pass drops; None where nothing can be.
        agrees: whether its output must equal that of the other variants that say so.
        note: what a reader must know to compare.
    """

    name: str
    forward: Callable[[], Tensor]
    leaves: Sequence[Tensor]
    weights: Sequence[Tensor] = ()
    dropped: Callable[[], int] | None = None
    agrees: bool = True
    note: str = ""


class Clock(Protocol):
    """Marks moments; tells how far apart two of them were once all work is done."""

    def mark(self) -> Any:
        """This moment, in the order of the device's work."""

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two marks. On a GPU, to be asked after ``settle``."""

    def settle(self) -> None:
        """Waits until the device has done what it was given."""


class CpuClock:
    """The processor does its work as it is told to."""

    def mark(self) -> float:
        """Now."""
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """The difference."""
        return end - start

    def settle(self) -> None:
        """Nothing to wait for."""


class CudaClock:
    """Events on the GPU's stream. Where a pass is launched more slowly than it runs, launching is what they time."""

    def mark(self) -> torch.cuda.Event:
        """An event behind everything that was launched so far."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Between two events that have happened."""
        return float(start.elapsed_time(end)) / 1e3

    def settle(self) -> None:
        """Waits for the GPU."""
        torch.cuda.synchronize()


def clock_for(device: str) -> Clock:
    """The clock of a device type."""
    return CudaClock() if device == "cuda" else CpuClock()


@dataclass
class Samples:
    """Seconds of each counted round."""

    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)

    @property
    def total(self) -> list[float]:
        """Forward and backward together, round by round."""
        return [f + b for f, b in zip(self.forward, self.backward, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A variant's seconds over the baseline's.

    Attributes:
        best: the least disturbed round of each, one over the other.
        median, low, high: median and quartiles of the ratios within the rounds.
    """

    best: float
    median: float
    low: float
    high: float


def ratio(ours: Sequence[float], base: Sequence[float]) -> Ratio:
    """Compares two series of rounds."""
    each = [a / b for a, b in zip(ours, base, strict=True)]
    low, median, high = statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else each * 3
    return Ratio(best=min(ours) / min(base), median=median, low=low, high=high)


def take_turns(
    variants: Sequence[Variant], *, rounds: int, warmup: int, clock: Clock, tell: Callable[[str], None]
) -> dict[str, Samples]:
    """Runs every variant once in each round, forward and backward.

    Rounds begin with another variant each time, so that none always follows the same one.

    Args:
        variants: each by a name of its own.
        rounds: rounds that count.
        warmup: rounds before them that do not.
        clock: of the device.
        tell: is told what is going on.
    """
    samples = {variant.name: Samples() for variant in variants}
    upstream: dict[str, Tensor] = {}
    for turn in range(warmup + rounds):
        for variant in rotated(variants, turn):
            tell(
                f"round {turn + 1 - warmup}/{rounds}, {variant.name}" if turn >= warmup else f"warm-up, {variant.name}"
            )
            clock.settle()
            start = clock.mark()
            y = variant.forward()
            middle = clock.mark()
            if variant.name not in upstream:
                upstream[variant.name] = torch.ones_like(y)
                middle = clock.mark()
            torch.autograd.grad(y, list(variant.leaves), upstream[variant.name], allow_unused=True)
            end = clock.mark()
            clock.settle()
            if turn >= warmup:
                samples[variant.name].forward.append(clock.seconds(start, middle))
                samples[variant.name].backward.append(clock.seconds(middle, end))
            del y
    return samples


def rotated(variants: Sequence[Item], turn: int) -> Iterator[Item]:
    """All of them, each round from another one on."""
    first = turn % len(variants)
    yield from variants[first:]
    yield from variants[:first]
