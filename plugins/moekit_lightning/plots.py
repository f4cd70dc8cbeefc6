"""The plots of a run: its loss curves, and the load of its experts over time.

They use matplotlib's objects on an Agg canvas: no window, no global state, safe in any process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from moekit.files import replace_file
from moekit.tables import Table, read_tables
from moekit.training.balance import max_violation
from moekit.training.metrics import headline
from moekit.training.run.folder import RunFolder
from moekit.training.run.hooks import EndedRun
from moekit.training.run.metrics_log import points_of, read_metrics

INK, FAINT, GRID = "#222222", "#777777", "#e6e6e6"
COLOURS = ("#1f5fa8", "#d1603d", "#2c8c6a", "#8a5fb0", "#b08a1e", "#4a4a4a")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a plot.

    Attributes:
        label: written at the line's end.
        x, y: the points.
        faint: whether to draw a pale line without label, for noisy training values.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False


def draw_plots(run: EndedRun) -> list[Path]:
    """Writes ``loss.png``, with the curves of a dense baseline, and ``load.png`` if the load of experts was recorded.

    Nothing for a run that failed, or for a dense baseline, whose curves are in the plot of its run.
    """
    folder, recipe = RunFolder(run.folder), run.module.recipe
    if run.failure is not None or folder.main != folder:
        return []
    rows = {run.label: run.rows}
    if recipe.compare is not None and folder.dense.metrics.is_file():
        rows["dense"] = read_metrics(folder.dense.metrics)
    metric, info = headline(recipe, {key for row in run.rows.values() for key in row})
    curves = []
    for label, of in rows.items():
        for part, faint in (("train", True), ("val", False)):
            x, y = points_of(of, f"{part}/{metric}")
            curves.append(Curve(label=label, x=x, y=y, faint=faint))
    words = info.with_unit()
    title = f"{run.label}: {words} on validation data (training data: faint)"
    paths = [draw_curves(run.folder / "loss.png", curves, title=title, y_label=words)]
    steps, loads = loads_of(read_tables(folder.routing, damaged=lambda error: None))
    if loads:
        title = f"{run.label}: load of each expert over time"
        paths.append(draw_load(run.folder / "load.png", steps, loads, title=title))
    return paths


def loads_of(tables: Mapping[str, Table]) -> tuple[list[int], dict[str, np.ndarray]]:
    """The recorded steps of training, and each layer's load ``[R, E]`` at these R steps; none without a record.

    A layer that lacks a step, as after another one took its place, is omitted.
    """
    table = tables.get("experts", {})
    if not table:
        return [], {}
    of_train = table["part"] == "train"
    steps, layers, loads = (table[name][of_train] for name in ("step", "layer", "load"))
    every, found = np.unique(steps), dict[str, np.ndarray]()
    for name in dict.fromkeys(layers):
        here = layers == name
        if np.array_equal(np.unique(steps[here]), every):
            found[name] = loads[here].reshape(len(every), -1)
    return every.tolist(), found


def draw_curves(
    path: Path, curves: Sequence[Curve], *, title: str, y_label: str, x_label: str = "step", y_from: float | None = None
) -> Path:
    """Draws lines over steps (or seconds). Lines with the same label share a colour; empty ones are skipped.

    ``y_from`` is the lower end of the axis (default: from the data).
    """
    figure, (axes,) = _figure(8.0, 4.2, [1])
    colours: dict[str, str] = {}
    values: list[float] = []
    ends: list[tuple[float, float, str, str]] = []
    for curve in curves:
        if not len(curve.x):
            continue
        colour = colours.setdefault(curve.label, COLOURS[len(colours) % len(COLOURS)])
        if curve.faint:
            axes.plot(curve.x, curve.y, color=colour, alpha=0.3, linewidth=1.0)
        else:
            marker = "o" if len(curve.x) <= 30 else None
            axes.plot(curve.x, curve.y, color=colour, linewidth=1.8, marker=marker, markersize=3.5)
            ends.append((float(curve.x[-1]), float(curve.y[-1]), curve.label, colour))
        values += [float(v) for v in curve.y]
    finite = np.array([v for v in values if np.isfinite(v)])
    if finite.size:
        # The highest 2 % are cut off: the first losses of a run would flatten all others.
        low, high = float(finite.min()), float(np.quantile(finite, 0.98))
        room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - room if y_from is None else y_from, high + room)
    _label_ends(axes, ends)
    _style(axes, title=title, x_label=x_label, y_label=y_label)
    return _save(figure, path)


def plain_name(layer: str) -> str:
    """A layer's name in words: ``encoder.blocks.1.ffn`` is "encoder, block 1"; other names stay."""
    match = re.fullmatch(r"(?:(encoder|decoder)\.)?(blocks|mtp)\.(\d+)(?:\.block)?\.ffn", layer)
    if match is None:
        return layer
    part, kind, number = match.groups()
    name = f"{'block' if kind == 'blocks' else 'MTP module'} {number}"
    return f"{part}, {name}" if part else name


def draw_load(path: Path, steps: Sequence[int], loads: Mapping[str, np.ndarray], *, title: str) -> Path:
    """Draws each layer's load as a heat map (experts by R steps), with MaxVio over time below."""
    layers = list(loads)
    heights = [1.5] * len(layers) + [1.5]
    figure, axes = _figure(8.0, 0.9 + 1.75 * (len(layers) + 1), heights)
    figure.suptitle(title, x=0.0, ha="left", fontsize=11, color=INK)
    # One scale for all layers: 1 is the mean load. Colours saturate at three times the mean.
    norm = TwoSlopeNorm(vmin=0.0, vcenter=1.0, vmax=3.0)
    edges = _edges(steps)
    image: Any = None
    for axis, name in zip(axes, layers, strict=False):
        load_XE = loads[name].astype(float)
        share_XE = load_XE / np.maximum(load_XE.mean(1, keepdims=True), 1e-9)
        E = load_XE.shape[1]
        image = axis.pcolormesh(edges, np.arange(E + 1), share_XE.T, cmap="RdBu_r", norm=norm, rasterized=True)
        axis.set_ylim(E, 0)
        axis.set_yticks([0.5, E - 0.5], ["0", str(E - 1)])
        axis.set_xlim(edges[0], edges[-1])
        axis.tick_params(length=0, labelsize=8, colors=FAINT)
        axis.set_ylabel("expert", fontsize=8, color=FAINT)
        axis.set_title(plain_name(name), loc="left", fontsize=9, color=INK, pad=3)
        for side in axis.spines.values():
            side.set_visible(False)
    below = axes[-1]
    ends = []
    values: list[float] = []
    for i, name in enumerate(layers):
        vio_X = max_violation(torch.from_numpy(np.ascontiguousarray(loads[name]))).numpy()
        colour = COLOURS[i % len(COLOURS)]
        below.plot(steps, vio_X, color=colour, linewidth=1.5)
        ends.append((float(steps[-1]), float(vio_X[-1]), plain_name(name), colour))
        values += vio_X.tolist()
    below.set_xlim(edges[0], edges[-1])
    below.set_ylim(0, max([*values, 0.1]) * 1.08)
    _label_ends(below, ends)
    _style(below, title="MaxVio: how far the highest load exceeds the mean", x_label="step", y_label="")
    if image is not None:
        bar = figure.colorbar(
            image, ax=list(axes[:-1]), location="right", fraction=0.025, pad=0.015, ticks=[0, 1, 2, 3]
        )
        bar.set_ticklabels(["0", "mean load", "2x", "3x or more"])
        bar.ax.tick_params(labelsize=8, colors=FAINT, length=0)
        bar.outline.set_visible(False)
    return _save(figure, path)


def _figure(width: float, height: float, heights: Sequence[float]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), dpi=144, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": list(heights)})
    return figure, [row[0] for row in grid]


def _edges(steps: Sequence[int]) -> np.ndarray:
    """The edges of the cells of R steps: halfway between neighbours."""
    x = np.asarray(steps, dtype=float)
    if len(x) == 1:
        return np.array([x[0] - 0.5, x[0] + 0.5])
    middle = (x[1:] + x[:-1]) / 2
    return np.concatenate([[x[0] - (middle[0] - x[0])], middle, [x[-1] + (x[-1] - middle[-1])]])


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Labels lines at their ends, and moves labels apart that would overlap; none if there are too many lines."""
    if len(ends) > 8:
        return
    low, high = axes.get_ylim()
    inches = axes.get_window_extent().height / axes.figure.dpi
    apart = (high - low) * 0.13 / inches
    below = -np.inf
    for x, y, label, colour in sorted(ends, key=lambda end: end[1]):
        below = max(y, below + apart)
        axes.annotate(
            label, (x, below), xytext=(6, 0), textcoords="offset points", color=colour, fontsize=8.5, va="center",
            annotation_clip=False,
        )  # fmt: skip


def _style(axes: Axes, *, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK, pad=8)
    axes.set_xlabel(x_label, fontsize=9, color=FAINT)
    axes.set_ylabel(y_label, fontsize=9, color=FAINT)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=FAINT, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def _save(figure: Figure, path: Path) -> Path:
    def save(partial: Path) -> None:
        figure.savefig(partial, format="png", bbox_inches="tight", pad_inches=0.12)

    replace_file(path, save)
    return path
