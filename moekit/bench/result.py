"""What is measured of one shape or recipe, as plain values: what tables are made of, and what ``--json`` prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moekit.bench.memory import Saved
from moekit.bench.timing import Ratio


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant.

    Attributes:
        name: of the variant.
        ms, forward_ms, backward_ms: of the best round, by each of the three.
        ratio, forward_ratio, backward_ratio: to the baseline.
        seconds: forward and backward of each counted round.
        saved: what is kept for backward, where asked for.
        peak: bytes at most on the GPU over what lay there before, where asked for and known.
        dropped: share of the pairs that reach no expert.
        error: largest difference to the first variant of the same function, over that one's largest output; None
            where there is nothing to compare with.
        note: what a reader must know to compare.
    """

    name: str
    ms: float
    forward_ms: float
    backward_ms: float
    ratio: Ratio
    forward_ratio: Ratio
    backward_ratio: Ratio
    seconds: Mapping[str, Sequence[float]]
    saved: Saved | None = None
    peak: int | None = None
    dropped: float = 0.0
    error: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The variants of one shape.

    Attributes:
        title: the shape's name and sizes.
        baseline: the variant that ratios are to.
        rows: in the order of the table.
        sizes: T, D, H, E, K.
        multiply_adds: of one forward pass, by what does them; empty where products are not measured.
        input_bytes, least_bytes: of the tokens; of what backward needs if all else is computed again.
        left_out: variants that could not run, each with the reason.
        explained: what dispatchers that choose for themselves say of this shape, by name.
    """

    title: str
    baseline: str
    rows: Sequence[Row]
    sizes: Mapping[str, int]
    multiply_adds: Mapping[str, int] = field(default_factory=dict)
    input_bytes: int = 0
    least_bytes: int = 0
    skips: Mapping[str, str] = field(default_factory=dict)
    explained: Mapping[str, str] = field(default_factory=dict)


def to_json(value: Any) -> Any:
    """Dataclasses as maps, all the way down."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


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
