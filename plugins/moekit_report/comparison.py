"""Runs compared: what their recipes differ in, and their results, seeds of one recipe pooled."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from moekit.errors import MoekitError
from moekit.run import Run
from moekit.spec import to_plain
from moekit.spec.fields import MetricInfo
from moekit.training.metrics import headline
from moekit.training.run.metrics_log import tenths
from moekit_report.diffing import diff

LABELS = ("name", "summary", "seed", "compare", "paper")
"""What a recipe may differ in and still be pooled with another."""


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """A value of several seeds.

    Attributes:
        mean: over seeds.
        spread: their standard deviation (n - 1); NaN for one seed.
        values: of each seed.
    """

    mean: float
    spread: float
    values: Sequence[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> Pooled:
        """Pools values; NaN, as of a metric that a run lacks, stays NaN."""
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        return cls(mean=float(np.mean(values)) if values else math.nan, spread=spread, values=list(values))

    def text(self, digits: int) -> str:
        """``2.201 ± 0.004``; ``-`` for NaN."""
        if math.isnan(self.mean):
            return "-"
        mean = f"{self.mean:,.{digits}f}"
        return mean if math.isnan(self.spread) else f"{mean} ± {self.spread:,.{digits}f}"


@dataclass(kw_only=True)
class Group:
    """Runs of one recipe with different seeds.

    Attributes:
        label: what sets it apart from the first group, or its name.
        changes: differences from the first group's recipe.
        runs: of the group, by seed.
        values: pooled results by name.
    """

    label: str
    changes: Sequence[str]
    runs: list[Run]
    values: dict[str, Pooled] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Groups in the order of the given runs, and the metric that they are compared by.

    Attributes:
        metric: its name, without ``val/``.
        info: how it is shown.
        groups: at least one.
        seconds: training time of the fastest run: the metric "after the same time" is taken there.
    """

    metric: str
    info: MetricInfo
    groups: Sequence[Group]
    seconds: float

    def plain(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "metric": self.metric,
            "seconds": self.seconds,
            "groups": [
                {
                    "label": group.label,
                    "changes": list(group.changes),
                    "runs": [run.path.as_posix() for run in group.runs],
                    "values": {name: asdict(value) for name, value in group.values.items()},
                }
                for group in self.groups
            ],
        }


DIGITS = {"steps": 0, "tokens": 0, "seconds": 1, "tokens per second": 0, "MaxVio": 2, "dropped": 4}


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Compares runs.

    Args:
        runs: at least one, each with metrics.

    Raises:
        MoekitError: no run is given, or one has logged nothing.
    """
    if not runs:
        raise MoekitError("no run is given to compare\n  expected run folders or names; list them: moekit ls runs")
    for run in runs:
        if not run.metrics:
            raise MoekitError(f"'{run.path.as_posix()}' has logged nothing yet: there is nothing to compare")
    metric, info = headline(runs[0].recipe, {key for run in runs for key in run.metrics})
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(_key(run), []).append(run)
    seconds = min(max(_column(run, "seconds"), default=math.inf) for run in runs)
    groups = []
    first = next(iter(grouped.values()))[0]
    for some in grouped.values():
        some.sort(key=lambda run: run.recipe.seed)
        changes = [
            str(change) for change in diff(first.recipe, some[0].recipe) if change.path.partition(".")[0] not in LABELS
        ]
        groups.append(Group(label=_label(some[0], changes), changes=changes, runs=some))
    _tell_apart(groups)
    for group in groups:
        each = [_results(run, metric, seconds) for run in group.runs]
        group.values = {name: Pooled.of([values[name] for values in each]) for name in each[0]}
    return Comparison(metric=metric, info=info, groups=groups, seconds=seconds)


def _key(run: Run) -> str:
    plain = to_plain(run.recipe, full_names=True)
    return json.dumps({key: value for key, value in plain.items() if key not in LABELS}, sort_keys=True)


def _label(run: Run, changes: Sequence[str]) -> str:
    name = run.recipe.name or run.path.parent.name
    return name if not changes or len(changes) > 3 else ", ".join(_short(change) for change in changes)


def _short(change: str) -> str:
    """``top_k=4`` of ``model.moe.router.top_k: 2 -> 4``."""
    path, _, sides = change.partition(": ")
    return f"{path.rpartition('.')[2]}={sides.rpartition(' -> ')[2]}"


def _tell_apart(groups: Sequence[Group]) -> None:
    """Numbers labels that two groups share."""
    for group in groups:
        same = [other for other in groups if other.label == group.label]
        if len(same) > 1:
            for number, other in enumerate(same, 1):
                other.label = f"{other.label} #{number}"


def _results(run: Run, metric: str, seconds: float) -> dict[str, float]:
    curve = points(run, f"val/{metric}", "seconds")
    vio, dropped = _column(run, "train/max_violation"), _column(run, "train/dropped")
    tokens, time = max(_column(run, "tokens"), default=math.nan), max(_column(run, "seconds"), default=math.nan)
    dense = run.dense
    baseline = [] if dense is None or not dense.metrics else _column(dense, f"val/{metric}")
    return {
        "steps": float(run.metrics["step"][-1] or 0),
        "tokens": tokens,
        "seconds": time,
        "tokens per second": tokens / time if time else math.nan,
        "result": curve[1][-1] if curve[1] else math.nan,
        "after the same time": _value_at(curve, seconds),
        "dense baseline": baseline[-1] if baseline else math.nan,
        "MaxVio": _end(vio),
        "dropped": _end(dropped),
    }


def points(run: Run, key: str, x: str) -> tuple[list[float], list[float]]:
    """The points of a metric over another column."""
    columns: Mapping[str, Sequence[float | None]] = run.metrics
    both = zip(columns.get(x, ()), columns.get(key, ()), strict=False)
    found = [(at, value) for at, value in both if at is not None and value is not None]
    return [at for at, _ in found], [value for _, value in found]


def _value_at(points: tuple[Sequence[float], Sequence[float]], x: float) -> float:
    """A curve's value at ``x``, linearly interpolated; NaN before its first point, the last value after its end."""
    xs, ys = points
    return math.nan if not len(xs) or x < xs[0] else float(np.interp(x, xs, ys))


def _column(run: Run, name: str) -> list[float]:
    return [value for value in run.metrics.get(name, ()) if value is not None]


def _end(values: Sequence[float]) -> float:
    """The mean of the last tenth."""
    return float(np.mean(tenths(values)[1])) if values else math.nan


def table_of(compared: Comparison, *, times: bool = True) -> list[tuple[str, ...]]:
    """A header, and a row for each group.

    Args:
        compared: the comparison.
        times: whether to show what depends on the speed of the machine.
    """
    digits = {**DIGITS, "result": compared.info.digits, "after the same time": compared.info.digits}
    digits["dense baseline"] = compared.info.digits
    timed = ("seconds", "tokens per second", "after the same time")
    names = [
        name
        for name in compared.groups[0].values
        if any(not math.isnan(group.values[name].mean) for group in compared.groups) and (times or name not in timed)
    ]
    title = {"result": compared.info.label, "after the same time": f"after {compared.seconds:,.0f} s"}
    rows = [("run", "seeds", *(title.get(name, name) for name in names))]
    for group in compared.groups:
        values = (group.values[name].text(digits[name]) for name in names)
        rows.append((group.label, str(len(group.runs)), *values))
    return rows
