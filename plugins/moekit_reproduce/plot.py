"""The plot of a study: every seed, the mean and its interval; or curves. Without pyplot, so that no state changes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from moekit.files import replace_file
from moekit_reproduce.study import Found, Panel, Study
from moekit_reproduce.verdict import interval

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#E69F00", "#56B4E9", "#882255", "#666666")


def draw(study: Study, found: Mapping[str, Found], path: Path) -> Path:
    """Plots every panel of a study, side by side, into a PNG.

    Raises:
        OSError: the disk is full, or the like.
    """
    rows = max(len(study.arms), 8)
    figure = Figure(figsize=(6.0 * len(study.panels), 1.2 + 0.34 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(study.panels), squeeze=False)[0], study.panels, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        if panel.value == "curve":
            _curves(axes, found)
        elif panel.points is None:
            _rows(axes, panel, found)
        else:
            _series(axes, panel, found)
        axes.set_title(panel.title, fontsize=10)
    replace_file(path, lambda partial: figure.savefig(partial, format="png"))
    return path


def _numbers(of: Found, value: str) -> list[float]:
    return [float(values[value]) for values in of.values.values() if value in values]


def _curves(axes: Axes, found: Mapping[str, Found]) -> None:
    for number, (name, of) in enumerate(found.items()):
        colour = COLOURS[number % len(COLOURS)]
        for seed, values in of.values.items():
            steps, losses = zip(*values["curve"], strict=True)
            axes.plot(steps, losses, color=colour, lw=1, alpha=0.8, label=name if seed == 1 else None)
    axes.set_xlabel("step")
    axes.legend(fontsize=8, frameon=False)


def _rows(axes: Axes, panel: Panel, found: Mapping[str, Found]) -> None:
    shown = [(name, numbers) for name, of in found.items() if (numbers := _numbers(of, panel.value))]
    for seed in zip(*(numbers for _, numbers in shown), strict=True):  # systems are compared seed by seed
        axes.plot(seed, [row + 0.12 for row in range(len(shown))], color="#bbbbbb", lw=0.8, zorder=0)
    colours = dict(zip(found, cycle(COLOURS), strict=False))  # an arm has one colour in all panels
    for row, (name, numbers) in enumerate(shown):
        colour = colours[name]
        axes.plot(numbers, [row + 0.12] * len(numbers), ".", color=colour, alpha=0.5, ms=6)
        _bar(axes, interval(numbers).low, interval(numbers).high, row - 0.12, colour)
        axes.plot([fmean(numbers)], [row - 0.12], "D", color=colour, ms=5)
    axes.set_yticks(range(len(shown)), [name for name, _ in shown])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)


def _bar(axes: Axes, low: float, high: float, row: float, colour: str) -> None:
    axes.plot([low, high], [row, row], color=colour, lw=2)


def _series(axes: Axes, panel: Panel, found: Mapping[str, Found]) -> None:
    assert panel.points is not None
    for number, (label, points) in enumerate(panel.points.items()):
        colour = COLOURS[number % len(COLOURS)]
        means = [fmean(_numbers(found[arm], panel.value)) for _, arm in points]
        if len(points) == 1:
            axes.axhline(means[0], color=colour, ls="--", lw=1.2, label=label)
            continue
        for x, arm in points:
            numbers = _numbers(found[arm], panel.value)
            axes.plot([x] * len(numbers), numbers, ".", color=colour, alpha=0.4, ms=6)
        axes.plot([x for x, _ in points], means, "D-", color=colour, ms=5, lw=1.4, label=label)
    if panel.log:
        axes.set_xscale("log")
    axes.set_xlabel(panel.x)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
