"""Trains every recipe of a paper to its end, one after the other; prints a table and plots the curves.

    python benchmarks/lineage.py                            # all recipes, each with its dense baseline: about an hour
    python benchmarks/lineage.py switch glam --no-compare   # these two, without baselines

``--docs`` writes the numbers to docs/lineage.json and the plot to docs/images/lineage.png, which the gallery shows, and
the two plots of ``deepseek_v3`` that README shows. Recipes that were not trained this time keep the numbers that they
have there. Then run docs/make_gallery.py.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from moekit import load
from moekit.registry import current

ROOT = Path(__file__).parents[1]
METRICS = ("bits_per_byte", "loss", "blend_mse")


def trainable() -> list[str]:
    """First-party recipes that have a paper and data, oldest paper first."""
    found = []
    for component in current().recipes:
        recipe = load(component.name)
        if component.plugin == "papers" and recipe.data is not None and recipe.paper is not None:
            found.append((recipe.paper.year, recipe.paper.arxiv, recipe.start is not None, component.name))
    return [name for *_, name in sorted(found)]  # a fine-tuning run after the run that it starts from


def train(name: str, out: Path, extra: list[str]) -> dict[str, Any]:
    """Trains one recipe; returns its summary with the curves of both models."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "moekit", "train", name, "--out", str(out), *extra],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    summary = max(path for path in out.joinpath(name).rglob("summary.json") if path.parent.name != "dense")
    numbers = json.loads(summary.read_text())
    del numbers["folder"], numbers["files"]  # paths in a temporary folder
    metric, curve = curve_of(summary.parent / "metrics.csv")
    dense = summary.parent / "dense" / "metrics.csv"
    numbers |= {"wall": time.perf_counter() - start, "metric": metric, "curve": curve}
    numbers["dense_curve"] = curve_of(dense)[1] if dense.is_file() else []
    return numbers


def copy_plots(run: Path) -> None:
    """Copies the plots of one run to docs/images, for docs/first_run.md: of the run whose figures README has."""
    for name in ("loss.png", "load.png"):
        shutil.copyfile(run / name, ROOT / "docs" / "images" / name)


def curve_of(file: Path) -> tuple[str, list[tuple[int, float]]]:
    """The validation metric that a run logged (without validation, the training metric), and its values by step."""
    with file.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    for part in ("val", "train"):
        for metric in METRICS:
            key = f"{part}/{metric}"
            values = [(int(row["step"]), float(row[key])) for row in rows if row.get(key)]
            if values:
                return metric, values
    raise SystemExit(f"{file} holds none of {', '.join(METRICS)}")


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """A panel for each recipe: its validation curve and its dense baseline's."""
    columns = min(4, len(results))
    rows = -(-len(results) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.4 * rows), squeeze=False, layout="constrained")
    lines: dict[str, Any] = {}
    for axis in axes.flat[len(results) :]:
        axis.axis("off")
    for axis, (name, numbers) in zip(axes.flat, results.items(), strict=False):
        for key, label, style in (("curve", "mixture", "-"), ("dense_curve", "dense", "--")):
            if numbers[key]:
                (lines[label],) = axis.plot(*zip(*numbers[key], strict=True), style, linewidth=1.5)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.set_ylabel(numbers["metric"].replace("_", " "), fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    figure.legend(lines.values(), lines.keys(), loc="outside upper right", ncols=2, fontsize=9, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="default: all that have data")
    parser.add_argument("--no-compare", action="store_true", help="without the dense baselines")
    parser.add_argument("--out", type=Path, help="keep the runs here")
    parser.add_argument("--docs", action="store_true", help="write docs/lineage.json and docs/images/lineage.png")
    args = parser.parse_args()
    matplotlib.use("agg")
    console, results = Console(stderr=True), {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.recipes or trainable():
            console.print(f"{name} ...")
            extra = ["--no-compare"] if args.no_compare else []
            results[name] = train(name, args.out or Path(temporary), extra)
            if args.docs and name == "deepseek_v3":
                copy_plots(max((args.out or Path(temporary)).joinpath(name).glob("*/loss.png")).parent)
            first, last = results[name]["curve"][0][1], results[name]["curve"][-1][1]
            console.print(f"  {results[name]['metric']} {first:.3f} to {last:.3f} in {results[name]['wall']:.0f} s")
    table = Table("recipe", "metric", "first", "last", "dense", "MaxVio", "dropped", "seconds, both")
    for name, r in results.items():
        dense = f"{r['dense_curve'][-1][1]:.3f}" if r["dense_curve"] else "-"
        spread = f"{r['max_violation'][0]:.2f} to {r['max_violation'][1]:.2f}" if r["max_violation"] else "-"
        dropped = f"{r['dropped']:.1%}" if r["dropped"] is not None else "-"
        ends = [f"{r['curve'][i][1]:.3f}" for i in (0, -1)]
        table.add_row(name, r["metric"], *ends, dense, spread, dropped, f"{r['wall']:.0f}")
    Console(width=120).print(table)
    if args.docs:
        stored = ROOT / "docs" / "lineage.json"
        known = json.loads(stored.read_text(encoding="utf-8")) | results
        results = {name: known[name] for name in trainable() if name in known}
        draw(results, ROOT / "docs" / "images" / "lineage.png")
        stored.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
