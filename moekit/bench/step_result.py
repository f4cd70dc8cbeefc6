"""What is measured of a training step, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moekit.bench.memory import Saved
from moekit.bench.timing import Ratio


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """One model's training step.

    Attributes:
        name: ``mixture``, ``dense``, or another library's.
        parameters: of the model.
        ms: of a step that does not log, in the best round.
        ratio: to the baseline's; None where there is none.
        parts: milliseconds of each part of such a step, medians over all rounds.
        logging_ms: what logging adds to a step that logs; None where nothing logs.
        log_every: steps from one that logs to the next, in the recipe's own run.
        outside: share of a step that is neither model, objective nor optimizer, logging spread over the steps.
        seconds: of each counted round.
        saved: what one forward pass and loss keep for backward, where asked for, on a CPU.
        peak: bytes at most on the GPU in a round, where asked for and known.
        note: what a reader must know to compare.
    """

    name: str
    parameters: int
    ms: float
    ratio: Ratio | None
    parts: Mapping[str, float]
    logging_ms: float | None
    log_every: int
    outside: float
    seconds: Sequence[float]
    saved: Saved | None = None
    peak: int | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class StepComparison:
    """A recipe's step and others'.

    Attributes:
        title: the recipe.
        baseline: the row that ratios are to; empty where there is one row alone.
        rows: the mixture; the dense model where there is one, or other libraries' models.
    """

    title: str
    baseline: str
    rows: Sequence[StepRow]
