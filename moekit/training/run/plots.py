"""The pictures of a run: its curves, and the load of its experts."""

from __future__ import annotations

from pathlib import Path

from moekit.observe.plots import Curve, draw_curves, draw_load
from moekit.training.run.metrics_log import curve
from moekit.training.run.prepare import Prepared


def draw_plots(run: Prepared, dense: Prepared | None) -> list[Path]:
    """``loss.png``, and ``load.png`` where load can be uneven."""
    metric, words = "loss", "loss" if run.module.recipe.model.takes == "cases" else "loss (nats a token)"
    if any("val/bits_per_byte" in row for row in run.log.rows.values()):
        metric = words = "bits_per_byte"
    curves = []
    for each in (run, dense):
        if each is not None:
            for part, faint in (("train", True), ("val", False)):
                x, y = curve(each.log.rows, f"{part}/{metric}")
                curves.append(Curve(label=each.label, x=x, y=y, faint=faint))
    words = words.replace("_", " ")
    title = f"{run.label}: {words} on validation data (training data: faint)"
    paths = [draw_curves(run.folder.path / "loss.png", curves, title=title, y_label=words)]
    if run.loads.loads:
        title = f"{run.label}: load of each expert over time"
        paths.append(draw_load(run.folder.path / "load.png", run.loads.steps, run.loads.arrays(), title=title))
    return paths
