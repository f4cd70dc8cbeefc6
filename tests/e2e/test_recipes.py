"""Every recipe with data trains: three steps in the default suite, to its end under ``-m slow``."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from moekit import load
from moekit.cli import main
from moekit.registry import current

TRAINABLE = [
    pytest.param(c.name, marks=[pytest.mark.slow] if c.name.startswith("lineage/") else [])
    for c in current().recipes
    if c.plugin == "papers" and load(c.name).data is not None
]


def arguments(name: str, out: Path, *overrides: str) -> list[str]:
    return ["train", name, *overrides, "--no-compare", "--out", str(out)]


def less_text(path: str, data: Any) -> list[str]:
    """Overrides that make text data read little; the text may be nested in other data."""
    given = {"megabytes": 0.2, "batch": 4, "domains": "[python, cpp]", "validation_pairs": 2}
    found = [f"{path}.{name}={value}" for name, value in given.items() if hasattr(data, name)]
    return found + (less_text(f"{path}.text", data.text) if hasattr(data, "text") else [])


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_recipe_trains_three_steps_and_writes_finite_metrics_and_plots(name: str, tmp_path: Path) -> None:
    few = ["start=null", "trainer.max_steps=3", "trainer.limit_val_batches=2", "trainer.log_every_n_steps=1"]
    assert main(arguments(name, tmp_path, *few, *less_text("data", load(name).data))) == 0
    (summary,) = tmp_path.rglob("summary.json")
    numbers = json.loads(summary.read_text())
    assert numbers["steps"] == 3
    assert all(math.isfinite(value) for value in numbers["validation"].values())
    assert (summary.parent / "loss.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINABLE)
def test_a_recipe_lowers_its_training_loss_by_a_tenth(name: str, tmp_path: Path) -> None:
    """From the first tenth of its steps to the last."""
    if (start := load(name).start) is not None:
        assert main(arguments(start.run, tmp_path, "trainer.max_steps=150")) == 0
    assert main(arguments(name, tmp_path)) == 0
    (metrics,) = (tmp_path / load(name).name).rglob("metrics.csv")
    with metrics.open(encoding="utf-8") as lines:
        losses = [float(row["train/loss"]) for row in csv.DictReader(lines) if row.get("train/loss")]
    tenth = max(1, len(losses) // 10)
    assert sum(losses[-tenth:]) < 0.9 * sum(losses[:tenth])
