"""Results as plain values: the rows of the tables, which are also what ``--json`` prints."""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from moekit.machine import processor_name
from moekit_bench.saved import Saved


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A variant's seconds over the baseline's.

    Attributes:
        best: the fastest round of the variant over the fastest of the baseline.
        median, low, high: median and quartiles of the ratios within rounds.
    """

    best: float
    median: float
    low: float
    high: float


def ratio(ours: Sequence[float], base: Sequence[float]) -> Ratio:
    """Compares the seconds of two variants, round by round."""
    each = [a / b for a, b in zip(ours, base, strict=True)]
    low, median, high = statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else each * 3
    return Ratio(best=min(ours) / min(base), median=median, low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class VariantRow:
    """One variant of a layer, a router or a dispatcher.

    Attributes:
        name: of the variant.
        ms, forward_ms, backward_ms: each of its fastest round.
        ratio, forward_ratio, backward_ratio: to the baseline.
        seconds: forward and backward of each counted round.
        saved: what is saved for backward, if measured.
        peak: on a GPU, peak bytes above what was allocated before, if measured.
        dropped: share of the token-expert pairs that reach no expert.
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
class ShapeResult:
    """All variants of one shape.

    Attributes:
        title: the shape's name and sizes.
        baseline: the variant that ratios are to.
        rows: in the order of the table.
        sizes: T, D, H, E, K.
        multiply_adds: of one forward pass, sparse and dense; empty where experts compute nothing.
        input_bytes: bytes of the tokens.
        least_bytes: bytes that backward needs if all else is recomputed; 0 where experts compute nothing.
        skips: variants that could not run, each with the reason.
        explained: by name, the explanations of dispatchers that choose among others.
    """

    title: str
    baseline: str
    rows: Sequence[VariantRow]
    sizes: Mapping[str, int]
    multiply_adds: Mapping[str, int] = field(default_factory=dict)
    input_bytes: int = 0
    least_bytes: int = 0
    skips: Mapping[str, str] = field(default_factory=dict)
    explained: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """One model's training step.

    Attributes:
        name: ``mixture``, ``dense``, or another library's.
        parameters: of the model.
        ms: of a step that does not log, in the fastest round.
        ratio: to the baseline's; None where there is none.
        parts: milliseconds of each part of such a step, medians over all rounds.
        logging_ms: what logging adds to a step that logs; None where nothing logs.
        log_every: steps from one that logs to the next, in the recipe's own run.
        outside: share of a step that is neither model, objective nor optimizer, logging spread over the steps.
        seconds: of each counted round.
        saved: on a CPU, what one forward pass and loss save for backward, if measured.
        peak: on a GPU, peak bytes of a round, if measured.
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
class StepResult:
    """The training steps of a recipe and of what it is compared with.

    Attributes:
        title: the recipe.
        baseline: the row that ratios are to; empty where there is only one row.
        rows: the mixture; then its dense baseline, if any, or other libraries' models.
    """

    title: str
    baseline: str
    rows: Sequence[StepRow]


def to_json(value: Any) -> Any:
    """Turns dataclasses into maps, recursively."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def machine(device: str, dtype: torch.dtype) -> dict[str, str | int]:
    """What was measured on: device, its name, cores, threads, versions, dtype."""
    found: dict[str, str | int] = {"device": device, "name": processor_name(), "cores": os.cpu_count() or 0}
    if device == "cuda":
        found["name"] = torch.cuda.get_device_name()
    found |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version()}
    return found | {"dtype": str(dtype).removeprefix("torch.")}
