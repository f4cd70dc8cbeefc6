"""What a run came to: the numbers, the comparison with the dense model, and the closing lines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from moekit.contracts import Data
from moekit.errors import MoekitError
from moekit.params import count_parameters
from moekit.spec.kinds import Recipe
from moekit.training.checkpoint import replace_file
from moekit.training.folder import RunFolder
from moekit.training.logs import Row, curve
from moekit.training.module import LitMoE

WORDS = {"bits_per_byte": "bits per byte", "blend_mse": "squared error of the blend"}


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
    comparison: Comparison | None = None
    files: Sequence[Path] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The metric that stands for the run: bits per byte where there is text, else the loss."""
        return "bits_per_byte" if "bits_per_byte" in self.validation else "loss"


def unit_of(recipe: Recipe) -> str:
    """What a run's data is counted in."""
    return "tokens" if recipe.model.takes == "tokens" else "cases"


def outcome_of(label: str, folder: RunFolder, module: LitMoE, rows: Mapping[int, Row]) -> Outcome:
    """Reads the numbers off a run's rows."""
    names = dict.fromkeys(key for row in rows.values() for key in row)
    train = {n.removeprefix("train/"): _tenths(rows, n)[1] for n in names if n.startswith("train/")}
    validation = {n.removeprefix("val/"): curve(rows, n)[1][-1] for n in names if n.startswith("val/")}
    metric = "val/bits_per_byte" if "bits_per_byte" in validation else "val/loss"
    sparse = "max_violation" in train
    try:
        count = count_parameters(module.model)
        total, active = count.total, count.active()
    except MoekitError:  # a router that does not say how many experts it activates
        total = active = sum(p.numel() for p in module.model.parameters())
    return Outcome(
        label=label,
        folder=folder.path,
        steps=module.logged_step or max(rows, default=0),
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


def tell(outcome: Outcome, module: LitMoE, console: Console) -> None:
    """Prints what a person wants to know at the end of a run."""
    unit = unit_of(module.recipe)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    for name in [outcome.metric, *(n for n in outcome.validation if n not in (outcome.metric, "objective"))]:
        trained = f"   (training {outcome.train[name]:.3f})" if name in outcome.train else ""
        words = "validation " + WORDS.get(name, name.replace("_", " "))
        grid.add_row(words, f"[bold]{outcome.validation[name]:.3f}[/bold]{trained}")
    if outcome.stopped_after is not None and module.recipe.stop is not None:
        stop = module.recipe.stop
        name = stop.metric.removeprefix("train/").replace("_", " ")
        grid.add_row("reached", f"{name} <= {stop.below:g} after {outcome.stopped_after:,} steps")
    elif module.recipe.stop is not None:
        grid.add_row("not reached", f"{module.recipe.stop.metric} <= {module.recipe.stop.below:g}")
    if outcome.max_violation is not None:
        start, end = outcome.max_violation
        grid.add_row("MaxVio", f"{start:.2f} at the start, {end:.2f} at the end (0 is an even load)")
        grid.add_row("dropped", f"{outcome.dropped:.1%} of token-expert pairs")
    rate = outcome.tokens / outcome.seconds if outcome.seconds else 0.0
    grid.add_row(
        "training", f"{outcome.steps:,} steps, {outcome.tokens:,.0f} {unit} in {outcome.seconds:.0f} s "
        f"({rate:,.0f} {unit}/s)"
    )  # fmt: skip
    console.print()
    console.print(grid, highlight=False)
    if outcome.comparison is not None:
        console.print()
        for line in comparison_lines(outcome.comparison, outcome):
            console.print(line, highlight=False, markup=False)
    elif module.recipe.compare is not None and module.recipe.model.dense_twin() is None:
        console.print("no comparison: this model has no dense twin", highlight=False)
    _tell_files(outcome, module, console)


def comparison_lines(c: Comparison, outcome: Outcome) -> list[str]:
    """The comparison in words: per token and per second, whoever wins."""
    words = WORDS.get(c.metric, c.metric)
    lines = [
        f"against a dense model of as many multiply-adds a token ({words}, lower is better):",
        f"  active parameters  {c.moe_active:,} of {c.moe_total:,}; dense {c.dense_active:,}",
        f"  per token          {c.moe:.3f}, dense {c.dense:.3f}, after the same {outcome.tokens:,.0f} tokens: "
        + _verdict(c.moe, c.dense),
    ]
    if math.isnan(c.moe_then) or math.isnan(c.dense_then):
        lines.append("  per second         one run ended before the other's first validation: nothing to compare")
        return lines
    lines.append(
        f"  per second         {c.moe_then:.3f}, dense {c.dense_then:.3f}, after the same {c.seconds:.0f} s: "
        + _verdict(c.moe_then, c.dense_then)
    )
    slower, faster = ("mixture", c.moe_seconds) if c.moe_seconds > c.dense_seconds else ("dense model", c.dense_seconds)
    lines.append(
        f"                     (the {slower} takes {faster / c.seconds:.1f} times as long a step here; "
        "its value is read in mid-schedule)"
    )
    return lines


def _verdict(moe: float, dense: float) -> str:
    if f"{moe:.3f}" == f"{dense:.3f}":
        return "a tie"
    winner = "the mixture" if moe < dense else "the dense model"
    return f"{winner} is better by {abs(moe - dense):.3f} ({abs(moe - dense) / max(moe, dense):.1%})"


def _tell_files(outcome: Outcome, module: LitMoE, console: Console) -> None:
    run = outcome.folder.as_posix()
    pictures = [p.relative_to(outcome.folder).as_posix() for p in outcome.files]
    written = ["spec.yaml", "metrics.csv", *(["load.npz"] if outcome.max_violation else []), "summary.json"]
    if module.data is not None and type(module.data).encode is not Data.encode:
        following = f'moekit generate {run} "The "'
    else:
        following = f"look at {run}/{pictures[-1]}"
    if outcome.stopped_after is None:
        further = f"moekit train --resume {run} trainer.max_steps={2 * outcome.steps}"
    else:
        further = f"moekit train {run}/spec.yaml seed={module.recipe.seed + 1}"
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    grid.add_row("folder", run)
    grid.add_row("files", "  ".join(written))
    grid.add_row("", "checkpoints/last.ckpt  checkpoints/best.ckpt  tensorboard/")
    grid.add_row("pictures", "  ".join(pictures))
    grid.add_row("try next", following)
    grid.add_row("", further)
    console.print()
    console.print(grid, highlight=False)
