"""The results of a run as numbers, and its comparison with the dense baseline."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

import numpy as np

from moekit.errors import MoekitError
from moekit.files import read_regular, replace_text
from moekit.params import count_parameters
from moekit.shards import parameter_shards
from moekit.training.metrics import headline
from moekit.training.module import LitMoE
from moekit.training.run.folder import RunFolder
from moekit.training.run.metrics_log import LARGEST, Row, points_of, tenths


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The model compared with its dense baseline, which does as many multiply-adds per token as the mixture did.

    Attributes:
        metric: the validation metric that is compared.
        moe, dense: its values after the same tokens.
        dense_as_long: its value for the dense model that trained for as long as the mixture did; None without one.
        as_long_steps: that model's steps, over which its schedule ran.
        moe_seconds, dense_seconds, as_long_seconds: training time of each whole run.
        moe_work, dense_work: multiply-adds of the feed-forward parts per token, in training; None if not known.
        moe_active, dense_active: active parameters per token, with both embeddings.
        moe_total: all parameters of the mixture.
        dense_scores: what evaluators found of the dense model.
    """

    metric: str
    moe: float
    dense: float
    dense_as_long: float | None
    as_long_steps: int
    moe_seconds: float
    dense_seconds: float
    as_long_seconds: float
    moe_work: float | None
    dense_work: float | None
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
        experts_per_token: experts that computed a token, mean over all logged steps; None without sparse layers.
        work: multiply-adds of the feed-forward parts per token, with these experts; None if the model does not say.
        stopped_after: steps until the metric fell to ``stop.below``; None if it did not.
        total, active: parameters.
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
    experts_per_token: float | None
    work: float | None
    stopped_after: int | None
    total: int
    active: int
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
    computed = experts_per_token(rows)
    return Outcome(
        label=label,
        folder=folder.path,
        steps=max(module.logged_step, *rows, 0),
        tokens=_largest(rows, "tokens"),
        seconds=_largest(rows, "seconds"),
        train=train,
        validation=validation,
        max_violation=_tenths(rows, "train/max_violation") if sparse else None,
        dropped=train["dropped"] if sparse else None,
        dropped_tokens=train["dropped_tokens"] if sparse else None,
        experts_per_token=computed,
        work=module.recipe.model.feed_forward_work(computed),
        stopped_after=module.stopped_after,
        total=total,
        active=active,
        skipped=module.skips.count,
        metric=metric,
    )


def _largest(rows: Mapping[int, Row], key: str) -> float:
    return max(points_of(rows, key)[1], default=0.0)


def _tenths(rows: Mapping[int, Row], key: str) -> tuple[float, float]:
    """Means of the first and of the last tenth of a metric's values."""
    first, last = tenths(points_of(rows, key)[1])
    return float(np.mean(first)), float(np.mean(last))


def experts_per_token(rows: Mapping[int, Row]) -> float | None:
    """Experts that computed a token, mean over all logged steps; None without sparse layers."""
    values = points_of(rows, "train/experts_per_token")[1]
    return float(np.mean(values)) if len(values) else None


def steps_in_same_time(moe: Mapping[int, Row], dense: Mapping[int, Row]) -> int:
    """How many steps of the dense model fit into the mixture's training time, by the rows of both runs.

    0 if there is nothing to compare: no validation, or within 2 % the steps that the dense model has trained.
    """
    seconds, dense_seconds = _largest(moe, "seconds"), _largest(dense, "seconds")
    if not dense_seconds or not any(key.startswith("val/") for row in dense.values() for key in row):
        return 0
    fit = max(1, int(max(dense) * seconds / dense_seconds))
    return 0 if abs(fit - max(dense)) < 0.02 * max(dense) else fit


def compare(moe: Outcome, dense: Outcome, as_long: Outcome | None) -> Comparison:
    """Compares a mixture with the dense model of the same tokens, and with that of the same time."""
    return Comparison(
        metric=moe.metric,
        moe=moe.validation[moe.metric],
        dense=dense.validation[moe.metric],
        dense_as_long=None if as_long is None else as_long.validation.get(moe.metric),
        as_long_steps=0 if as_long is None else as_long.steps,
        moe_seconds=moe.seconds,
        dense_seconds=dense.seconds,
        as_long_seconds=0.0 if as_long is None else as_long.seconds,
        moe_work=moe.work,
        dense_work=dense.work,
        moe_active=moe.active,
        dense_active=dense.active,
        moe_total=moe.total,
        dense_scores=dense.scores,
    )


def write_summary(path: Path, outcome: Outcome) -> None:
    """Writes the results as JSON."""
    replace_text(path, json.dumps(asdict(outcome), indent=2, default=Path.as_posix) + "\n")


def read_summary(path: Path) -> dict[str, Any]:
    """The same as plain data: the fields of ``Outcome``.

    Raises:
        MoekitError: the file cannot be read, or is damaged.
    """
    try:
        found = json.loads(read_regular(path, LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        raise MoekitError(f"{path} is damaged: {getattr(error, 'strerror', None) or error}") from error
    if not _fits(found, Outcome):
        raise MoekitError(f"{path} is damaged: it does not have the fields of a run's results")
    return cast(dict[str, Any], found)


def _fits(value: Any, hint: Any) -> bool:
    """Whether plain data are of a type."""
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return isinstance(value, dict) and all(name in value and _fits(value[name], hints[name]) for name in hints)
    origin, of = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return any(_fits(value, each) for each in of)
    if origin is Mapping:
        return isinstance(value, dict) and all(_fits(each, of[1]) for each in value.values())
    if origin in (Sequence, tuple):
        kinds = of if origin is tuple else of * len(value) if isinstance(value, list) else ()
        return isinstance(value, list) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    kind: Any = {float: (int, float), Path: str}.get(hint, hint)
    return isinstance(value, kind) and not isinstance(value, bool)
