"""What a run came to, in numbers: its own, and against the dense model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moekit.checkpoints.files import replace_file
from moekit.errors import MoekitError
from moekit.params import count_parameters
from moekit.shards.shard import parameter_shards
from moekit.training.module import LitMoE
from moekit.training.run.folder import RunFolder
from moekit.training.run.metrics_log import Row, curve


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The model against the dense one of as many multiply-adds a token.

    Attributes:
        metric: what is compared, lower being better.
        moe, dense: its validation values after the same tokens.
        seconds: the shorter of the two runs' training times.
        moe_then, dense_then: both values at that time, read off the validation curves; NaN where a curve had not
            begun.
        moe_seconds, dense_seconds: training time of each whole run.
        moe_active, dense_active: active parameters a token, both embeddings counted.
        moe_total: all parameters of the mixture.
        dense_scores: what the data measured of the dense model; empty where it measures nothing.
    """

    metric: str
    moe: float
    dense: float
    seconds: float
    moe_then: float
    dense_then: float
    moe_seconds: float
    dense_seconds: float
    moe_active: int
    dense_active: int
    moe_total: int
    dense_scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The numbers of a run.

    Attributes:
        label: what was trained.
        folder: where it lies.
        steps, tokens, seconds: how much training; seconds without validation.
        train, validation: the last values by metric; training's are means of the last tenth.
        max_violation: MaxVio, means of the first and the last tenth of logged steps; None without sparse layers.
        dropped: fraction of pairs dropped, mean of the last tenth; None as above.
        stopped_after: steps to fall to the recipe's ``stop.below``; None when it did not.
        total, active: parameters.
        curve: the validation curve of the main metric: seconds and values.
        skipped: optimizer steps left out, because they were not finite.
        scores: what the data measured of the trained model (BLEU); empty where it measures nothing.
        comparison: with the dense model, if asked for.
        files: pictures.
    """

    label: str
    folder: Path
    steps: int
    tokens: float
    seconds: float
    train: Mapping[str, float]
    validation: Mapping[str, float]
    max_violation: tuple[float, float] | None
    dropped: float | None
    stopped_after: int | None
    total: int
    active: int
    curve: tuple[Sequence[float], Sequence[float]]
    skipped: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    comparison: Comparison | None = None
    files: Sequence[Path] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The metric that stands for the run: bits per byte where there is text, else the loss."""
        return "bits_per_byte" if "bits_per_byte" in self.validation else "loss"


def outcome_of(label: str, folder: RunFolder, module: LitMoE, rows: Mapping[int, Row]) -> Outcome:
    """Reads the numbers off a run's rows."""
    names = dict.fromkeys(key for row in rows.values() for key in row if key != "train/skipped")
    train = {n.removeprefix("train/"): _tenths(rows, n)[1] for n in names if n.startswith("train/")}
    validation = {n.removeprefix("val/"): curve(rows, n)[1][-1] for n in names if n.startswith("val/")}
    metric = "val/bits_per_byte" if "bits_per_byte" in validation else "val/loss"
    sparse = "max_violation" in train
    try:
        count = count_parameters(module.recipe)  # not the model: fine-tuning may have frozen parts
        total, active = count.total, count.active()
    except MoekitError:  # a router that does not say how many experts it activates
        total = active = sum(math.prod(box.global_shape) for box in parameter_shards(module.model).values())
    return Outcome(
        label=label,
        folder=folder.path,
        steps=max(module.logged_step, *rows, 0),
        tokens=max((row["tokens"] for row in rows.values() if "tokens" in row), default=0.0),
        seconds=max((row["seconds"] for row in rows.values() if "seconds" in row), default=0.0),
        train=train,
        validation=validation,
        max_violation=_tenths(rows, "train/max_violation") if sparse else None,
        dropped=train["dropped"] if sparse else None,
        stopped_after=module.stopped_after,
        total=total,
        active=active,
        curve=curve(rows, metric, x="seconds"),
        skipped=module.skips.count,
    )


def _tenths(rows: Mapping[int, Row], key: str) -> tuple[float, float]:
    """Means of the first and of the last tenth of a metric's values."""
    values = curve(rows, key)[1]
    n = max(1, len(values) // 10)
    return float(np.mean(values[:n])), float(np.mean(values[-n:]))


def compare(moe: Outcome, dense: Outcome) -> Comparison:
    """Both on the same tokens, and both at the time when the faster one ended."""
    seconds = min(moe.seconds, dense.seconds)
    return Comparison(
        metric=moe.metric,
        moe=moe.validation[moe.metric],
        dense=dense.validation[moe.metric],
        seconds=seconds,
        moe_then=value_at(moe.curve, seconds),
        dense_then=value_at(dense.curve, seconds),
        moe_seconds=moe.seconds,
        dense_seconds=dense.seconds,
        moe_active=moe.active,
        dense_active=dense.active,
        moe_total=moe.total,
        dense_scores=dense.scores,
    )


def value_at(points: tuple[Sequence[float], Sequence[float]], x: float) -> float:
    """A curve's value at ``x``, on the line between its neighbours; NaN before it begins, the last one after."""
    xs, ys = points
    return math.nan if not len(xs) or x < xs[0] else float(np.interp(x, xs, ys))


def write_summary(path: Path, outcome: Outcome) -> None:
    """Writes the numbers as JSON."""
    plain: dict[str, Any] = asdict(outcome)
    plain["folder"] = outcome.folder.as_posix()
    plain["files"] = [p.as_posix() for p in outcome.files]
    text = json.dumps({key: value for key, value in plain.items() if key != "curve"}, indent=2)
    replace_file(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
