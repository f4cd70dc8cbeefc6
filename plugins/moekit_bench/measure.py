"""Variants of a layer: each is tried once, then all are timed interleaved, forward and backward."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from moekit_bench.results import VariantRow, ratio
from moekit_bench.saved import Saved, saved_for_backward

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure.

    Attributes:
        device: ``cpu`` or ``cuda``.
        dtype: of tokens and weights.
        rounds, warmup: rounds that count, and rounds before them that do not.
        memory: whether memory is measured too, after the timed rounds.
        explain: whether dispatchers that choose among others are asked why.
        on_progress: called with a line that says what runs.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    rounds: int = 9
    warmup: int = 2
    memory: bool = False
    explain: bool = False
    on_progress: Callable[[str], None] = lambda text: None


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One implementation of the work.

    Attributes:
        name: of its row.
        forward: runs one forward pass and returns what is differentiated.
        leaves: the tensors to take gradients of.
        weights: tensors that are in memory whether or not there is a backward pass.
        dropped: counts the pairs that one forward pass drops; None where it cannot drop any.
        agrees: whether its output must equal that of the other variants with ``agrees``.
        note: what a reader must know to compare.
    """

    name: str
    forward: Callable[[], Tensor]
    leaves: Sequence[Tensor]
    weights: Sequence[Tensor] = ()
    dropped: Callable[[], int] | None = None
    agrees: bool = True
    note: str = ""

    def step(self) -> Tensor:
        """Runs forward and backward; returns the output."""
        y = self.forward()
        torch.autograd.grad(y, list(self.leaves), torch.ones_like(y), allow_unused=True)
        return y.detach()


class Clock:
    """Marks moments in the order of the device's work, and gives the seconds between two of them.

    On ``cuda`` marks are events on its stream. They measure launching where a pass takes longer to launch than to run.
    With one thread on a CPU they are the processor's time of that thread, which other work does not lengthen.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"

    def mark(self) -> Any:
        """This moment: after everything that was launched so far."""
        if not self._cuda:
            return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two marks, once the device has reached both (``settle``)."""
        return float(start.elapsed_time(end)) / 1e3 if self._cuda else float(end - start)

    def settle(self) -> None:
        """Waits until the device has finished its work."""
        if self._cuda:
            torch.cuda.synchronize()


@dataclass
class Samples:
    """Seconds of each counted round."""

    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)

    @property
    def total(self) -> list[float]:
        """Forward and backward together, round by round."""
        return [f + b for f, b in zip(self.forward, self.backward, strict=True)]


def measure(
    variants: Sequence[Variant], settings: Settings, *, baseline: str, pairs: int
) -> tuple[list[VariantRow], dict[str, str]]:
    """Tries every variant, times those that run, and measures their memory. Ratios are to the variant ``baseline``.

    Returns:
        Rows in the order of the variants, with the share of ``pairs`` that each drops; and the skipped variants, each
        with the reason.

    Raises:
        RuntimeError, ValueError, NotImplementedError: the baseline itself does not run.
    """
    trials, skips = _try_all(variants, baseline, pairs, settings.on_progress)
    samples = time_interleaved(
        [variant for variant, *_ in trials],
        rounds=settings.rounds,
        warmup=settings.warmup,
        clock=Clock(settings.device),
        on_progress=settings.on_progress,
    )
    return [_row(trial, samples[trial[0].name], samples[baseline], settings) for trial in trials], skips


def time_interleaved(
    variants: Sequence[Variant], *, rounds: int, warmup: int, clock: Clock, on_progress: Callable[[str], None]
) -> dict[str, Samples]:
    """Runs every variant once in each round, forward and backward.

    Each round starts with another variant, so that none always follows the same one. ``warmup`` rounds come first and
    do not count.
    """
    samples = {variant.name: Samples() for variant in variants}
    upstream: dict[str, Tensor] = {}
    for turn in range(warmup + rounds):
        for variant in rotated(variants, turn):
            place = f"round {turn + 1 - warmup}/{rounds}" if turn >= warmup else "warm-up"
            on_progress(f"{place}, {variant.name}")
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


def rotated(items: Sequence[Item], turn: int) -> Iterator[Item]:
    """All items, starting one later in each turn."""
    first = turn % len(items)
    yield from items[first:]
    yield from items[:first]


Trial = tuple[Variant, float, float | None]
"""What an untimed pass shows of a variant: the share of pairs that it drops, and its difference from the others."""


def _try_all(
    variants: Sequence[Variant], baseline: str, pairs: int, on_progress: Callable[[str], None]
) -> tuple[list[Trial], dict[str, str]]:
    """Runs every variant once, compares the outputs of those that must agree, and skips those that do not run."""
    trials: list[Trial] = []
    skips: dict[str, str] = {}
    truth: Tensor | None = None
    for variant in variants:
        on_progress(f"trial of {variant.name}")
        try:
            y, dropped = variant.step(), variant.dropped() if variant.dropped else 0
        except (RuntimeError, ValueError, NotImplementedError) as error:
            if variant.name == baseline:
                raise
            skips[variant.name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            continue
        error_ = None
        if variant.agrees and not dropped:
            error_ = None if truth is None else float((y - truth).abs().max() / truth.abs().max().clamp(min=1e-30))
            truth = y if truth is None else truth
        trials.append((variant, dropped / pairs, error_))
    return trials, skips


def _row(trial: Trial, ours: Samples, base: Samples, settings: Settings) -> VariantRow:
    variant, dropped, error = trial
    saved, peak = _memory(variant, settings) if settings.memory else (None, None)
    return VariantRow(
        name=variant.name,
        ms=1e3 * min(ours.total),
        forward_ms=1e3 * min(ours.forward),
        backward_ms=1e3 * min(ours.backward),
        ratio=ratio(ours.total, base.total),
        forward_ratio=ratio(ours.forward, base.forward),
        backward_ratio=ratio(ours.backward, base.backward),
        seconds={"forward": ours.forward, "backward": ours.backward},
        saved=saved,
        peak=peak,
        dropped=dropped,
        error=error,
        note=variant.note,
    )


def _memory(variant: Variant, settings: Settings) -> tuple[Saved, int | None]:
    """What is saved for backward; on a GPU also the peak above what was allocated before."""
    settings.on_progress(f"memory of {variant.name}")
    saved = saved_for_backward(variant.forward, variant.weights)
    if settings.device != "cuda":
        return saved, None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    variant.step()
    torch.cuda.synchronize()
    return saved, int(torch.cuda.max_memory_allocated()) - before
