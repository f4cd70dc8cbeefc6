"""A run in the terminal while it trains: its last metrics, loss as a line, load as a row of blocks for each layer.

It reads the files of the run's folder and nothing else, so it works from any process that can read them, over ssh too.
They are written with every checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from moekit.errors import MoekitError
from moekit.run import Run
from moekit.spec.fields import MetricInfo, metrics_of
from moekit.training.metrics import headline
from moekit_report.reading import STARVED, LayerLog, layer_logs

BLOCKS = " ▁▂▃▄▅▆▇█"
SHOWN = ("lr", "grad_norm", "tokens_per_second", "train/dropped")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What there is to see of a run.

    Attributes:
        title: its name and step.
        is_complete: whether the run has written its results.
        values: labels with numbers.
        curves: labels with their values over time.
        layers: the record of every layer.
    """

    title: str
    is_complete: bool
    values: Sequence[tuple[str, str]]
    curves: Mapping[str, Sequence[float]]
    layers: Mapping[str, LayerLog]


def snapshot(run: Run) -> Snapshot:
    """Reads a run's files.

    Raises:
        MoekitError: a file of its routing is damaged.
    """
    run = Run(run._folder)  # nothing that was read before
    metrics, recipe = run.metrics, run.recipe
    metric, _ = headline(recipe, set(metrics))
    last = {name: next((v for v in reversed(c) if v is not None), math.nan) for name, c in metrics.items()}
    step = int(last.get("step", 0))
    names = [f"{part}/{name}" for part in ("train", "val") for name in dict.fromkeys((metric, "max_violation"))]
    infos = metrics_of(recipe)
    values = [
        (
            name,
            infos[name.rpartition("/")[2]].format(last[name])
            if name.rpartition("/")[2] in infos
            else f"{last[name]:,.4g}",
        )
        for name in (*names, *SHOWN)
        if name in last
    ]
    curves = {name: [v for v in metrics[name] if v is not None] for name in names if name in metrics}
    return Snapshot(
        title=f"{recipe.name or run.path.parent.name}, step {step:,} of {recipe.trainer.max_steps:,}",
        is_complete=run.is_complete,
        values=values,
        curves=curves,
        layers=layer_logs(run.routing, "train") or layer_logs(run.routing, "val"),
    )


def _number(infos: Mapping[str, MetricInfo], name: str, value: float) -> str:
    info = infos.get(name.rpartition("/")[2])
    return f"{value:,.4g}" if info is None else info.format(value)


def sparkline(values: Sequence[float], width: int) -> str:
    """Values as blocks, at most ``width`` of them: means of runs of values, from the lowest to the highest."""
    sections = np.array_split(np.asarray(values, float), max(1, min(width, len(values))))
    parts = [part.mean() for part in sections if len(part)]
    finite = [value for value in parts if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(BLOCKS) - 2) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[1 + round((v - low) * scale)] if math.isfinite(v) else " " for v in parts)


def load_blocks(share_E: np.ndarray, width: int) -> str:
    """The load of each expert as a block, full at twice a fair share; of neighbours if there is no room for all."""
    parts = np.array_split(share_E, min(width, len(share_E)))
    return "".join(BLOCKS[min(round(float(part.mean()) * (len(BLOCKS) - 1) / 2), len(BLOCKS) - 1)] for part in parts)


def view(seen: Snapshot, width: int) -> Group:
    """The snapshot for a terminal of so many columns."""
    values = Table.grid(padding=(0, 2))
    for label, value in seen.values:
        values.add_row(label, Text(value, justify="right"), sparkline(seen.curves.get(label, ()), max(8, width - 44)))
    rows = list(_layer_rows(seen.layers, max(8, width - 46)))
    layers = Table(box=None, pad_edge=False)
    for column in ("layer", "load of each expert", "MaxVio", "starved"):
        layers.add_column(column, no_wrap=True)
    for row in rows:
        layers.add_row(*row)
    title = Text(f"{seen.title}{', complete' if seen.is_complete else ''}", style="bold")
    return Group(title, values, layers) if rows else Group(title, values)


def _layer_rows(layers: Mapping[str, LayerLog], width: int) -> Iterator[tuple[str, str, str, str]]:
    for name, log in layers.items():
        share_E = log.share_XE[-1]
        starved = int((share_E < STARVED).sum())
        yield name, load_blocks(share_E, width), f"{log.max_violation_X[-1]:.2f}", f"{starved} of {len(share_E)}"


def check_interval(seconds: float) -> None:
    """Rejects an interval between looks that is not positive.

    Raises:
        MoekitError: it is not.
    """
    if not seconds > 0:
        raise MoekitError(f"--every {seconds:g}: expected seconds, more than 0")
