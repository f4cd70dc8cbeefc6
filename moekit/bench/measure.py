"""From variants to rows: a trial of each, timed rounds, and memory where it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moekit.bench.memory import Saved, peak_on_cuda, saved_for_backward
from moekit.bench.result import Row
from moekit.bench.timing import Samples, Variant, clock_for, ratio, take_turns


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure.

    Attributes:
        device: ``cpu`` or ``cuda``.
        dtype: of tokens and weights.
        rounds, warmup: rounds that count, and rounds before them that do not.
        memory: whether memory is measured too, after the timed rounds.
        explain: whether dispatchers that choose for themselves are asked why.
        tell: is told what is going on.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    rounds: int = 9
    warmup: int = 2
    memory: bool = False
    explain: bool = False
    tell: Callable[[str], None] = lambda text: None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one untimed pass shows of a variant."""

    variant: Variant
    dropped: float
    error: float | None


def measure(
    variants: Sequence[Variant], settings: Settings, *, baseline: str, pairs: int
) -> tuple[list[Row], dict[str, str]]:
    """Tries every variant, times those that run, and measures their memory.

    Args:
        variants: the baseline and the others.
        settings: how.
        baseline: the name of the variant that ratios are to.
        pairs: token-expert pairs, of which some may be dropped.

    Returns:
        Rows in the order of the variants; and those left out, with the reason.

    Raises:
        RuntimeError, ValueError: the baseline itself does not run.
    """
    trials, skips = try_all(variants, baseline, pairs, settings.tell)
    able = [trial.variant for trial in trials]
    clock = clock_for(settings.device)
    samples = take_turns(able, rounds=settings.rounds, warmup=settings.warmup, clock=clock, tell=settings.tell)
    base = samples[baseline]
    rows = []
    for trial in trials:
        saved, peak = _memory(trial.variant, settings)
        rows.append(_row(trial, samples[trial.variant.name], base, saved, peak))
    return rows, skips


def try_all(
    variants: Sequence[Variant], baseline: str, pairs: int, tell: Callable[[str], None]
) -> tuple[list[Trial], dict[str, str]]:
    """Runs every variant once, there and back; holds those of one function to each other; leaves out who cannot."""
    trials: list[Trial] = []
    skips: dict[str, str] = {}
    truth: Tensor | None = None
    for variant in variants:
        tell(f"trial of {variant.name}")
        try:
            y = variant.forward()
            torch.autograd.grad(y, list(variant.leaves), torch.ones_like(y), allow_unused=True)
            y, dropped = y.detach(), variant.dropped() if variant.dropped else 0
        except (RuntimeError, ValueError, NotImplementedError) as error:
            if variant.name == baseline:
                raise
            skips[variant.name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            continue
        error_ = None
        if variant.agrees and not dropped:
            error_ = None if truth is None else float((y - truth).abs().max() / truth.abs().max().clamp(min=1e-30))
            truth = y if truth is None else truth
        trials.append(Trial(variant=variant, dropped=dropped / pairs, error=error_))
    return trials, skips


def _memory(variant: Variant, settings: Settings) -> tuple[Saved | None, int | None]:
    if not settings.memory:
        return None, None
    settings.tell(f"memory of {variant.name}")
    saved = saved_for_backward(variant.forward, variant.weights)
    if settings.device != "cuda":
        return saved, None

    def step() -> object:
        y = variant.forward()
        return torch.autograd.grad(y, list(variant.leaves), torch.ones_like(y), allow_unused=True)

    return saved, peak_on_cuda(step)


def _row(trial: Trial, ours: Samples, base: Samples, saved: Saved | None, peak: int | None) -> Row:
    return Row(
        name=trial.variant.name,
        ms=1e3 * min(ours.total),
        forward_ms=1e3 * min(ours.forward),
        backward_ms=1e3 * min(ours.backward),
        ratio=ratio(ours.total, base.total),
        forward_ratio=ratio(ours.forward, base.forward),
        backward_ratio=ratio(ours.backward, base.backward),
        seconds={"forward": ours.forward, "backward": ours.backward},
        saved=saved,
        peak=peak,
        dropped=trial.dropped,
        error=trial.error,
        note=trial.variant.note,
    )
