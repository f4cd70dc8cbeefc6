"""The results of a run as numbers, and its comparison with the dense baseline."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moekit.errors import MoekitError
from moekit.files import replace_file
from moekit.params import count_parameters
from moekit.shards import parameter_shards
from moekit.training.metrics import headline
from moekit.training.module import LitMoE
from moekit.training.run.folder import RunFolder
from moekit.training.run.metrics_log import Row, points_of


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The model compared with its dense baseline, which does the same number of multiply-adds per token.

    Attributes:
        metric: the validation metric that is compared.
        moe, dense: its values after the same tokens.
        seconds: the training time of the faster run.
        moe_then, dense_then: both values at that time, from the validation curves; NaN before a curve's first point.
        moe_seconds, dense_seconds: training time of each whole run.
        moe_active, dense_active: active parameters per token, with both embeddings.
        moe_total: all parameters of the mixture.
        dense_scores: what evaluators found of the dense model.
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
    """The results of a run.

    Attributes:
        label: name of the run.
        folder: its path.
        steps, tokens, seconds: of training; seconds without validation.
        train: by metric, means over the last tenth of logged steps.
        validation: by metric, the last values.
        max_violation: MaxVio, means over the first and the last tenth of logged steps; None without sparse layers.
        dropped: fraction of dropped pairs, mean over the last tenth; None without sparse layers.
        dropped_tokens: as ``dropped``, of tokens that lost all their experts.
        stopped_after: steps until the metric fell to ``stop.below``; None if it did not.
        total, active: parameters.
        curve: the validation curve of the main metric: seconds and values.
        skipped: optimizer steps that were skipped because they were not finite.
        scores: what evaluators found of the trained model (BLEU); empty without evaluators.
        reported: what plugins report, by name.
        comparison: with the dense baseline, if there is one.
        files: plots, and what evaluators wrote.
        metric: the main metric of the run: the first headline that a part of the recipe declares and validation logged,
            else the loss.
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
    dropped_tokens: float | None
    stopped_after: int | None
    total: int
    active: int
    curve: tuple[Sequence[float], Sequence[float]]
    skipped: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    reported: Mapping[str, str] = field(default_factory=dict)
    comparison: Comparison | None = None
    files: Sequence[Path] = field(default_factory=list)
    metric: str = "loss"


def outcome_of(label: str, folder: RunFolder, module: LitMoE, rows: Mapping[int, Row]) -> Outcome:
    """The results of a trained module, from its run's rows of metrics."""
    names = dict.fromkeys(key for row in rows.values() for key in row if key != "train/skipped")
    train = {n.removeprefix("train/"): _tenths(rows, n)[1] for n in names if n.startswith("train/")}
    validation = {n.removeprefix("val/"): points_of(rows, n)[1][-1] for n in names if n.startswith("val/")}
    metric, _ = headline(module.recipe, names)
    sparse = "max_violation" in train
    try:
        count = count_parameters(module.recipe)  # of the recipe: fine-tuning may have frozen parts of the model
        total, active = count.total, count.active()
    except MoekitError:  # the router does not say how many experts it activates
        total = active = sum(math.prod(shard.global_shape) for shard in parameter_shards(module.model).values())
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
        dropped_tokens=train["dropped_tokens"] if sparse else None,
        stopped_after=module.stopped_after,
        total=total,
        active=active,
        curve=points_of(rows, f"val/{metric}", x="seconds"),
        skipped=module.skips.count,
        metric=metric,
    )


def _tenths(rows: Mapping[int, Row], key: str) -> tuple[float, float]:
    """Means of the first and of the last tenth of a metric's values."""
    values = points_of(rows, key)[1]
    n = max(1, len(values) // 10)
    return float(np.mean(values[:n])), float(np.mean(values[-n:]))


def compare(moe: Outcome, dense: Outcome) -> Comparison:
    """Compares both after the same tokens, and at the time when the faster run ended."""
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
    """A curve's value at ``x``, linearly interpolated; NaN before its first point, the last value after its end."""
    xs, ys = points
    return math.nan if not len(xs) or x < xs[0] else float(np.interp(x, xs, ys))


def write_summary(path: Path, outcome: Outcome) -> None:
    """Writes the results as JSON, without the curve."""
    plain: dict[str, Any] = asdict(outcome)
    plain["folder"] = outcome.folder.as_posix()
    plain["files"] = [p.as_posix() for p in outcome.files]
    text = json.dumps({key: value for key, value in plain.items() if key != "curve"}, indent=2)
    replace_file(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
