"""Runs are compared by recipe: seeds are pooled, differences are named, and the page loads nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moekit
from moekit.cli import main
from moekit.errors import MoekitError
from moekit.run import Run
from moekit_report.comparison import Pooled, compare_runs, table_of

Make = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def runs(tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Two seeds of one recipe, and one of another."""
    out = tmp_path_factory.mktemp("compared")
    short = {"max_steps": 4, "val_check_interval": 2}
    changes: list[list[str]] = [["seed=1"], ["model.moe.router.top_k=3"], ["seed=2"]]
    return [moekit.train(tiny(trainer=short), each, out=out, quiet=True) for each in changes]


def test_seeds_of_one_recipe_are_pooled_and_others_are_named_by_their_difference(runs: list[Run]) -> None:
    compared = compare_runs(runs)
    assert [(group.label, len(group.runs)) for group in compared.groups] == [("tiny", 2), ("top_k=3", 1)]
    assert compared.groups[1].changes == ["model.moe.router.top_k: 2 -> 3"]
    assert compared.metric == "bits_per_byte"
    results = [run.outcome["validation"]["bits_per_byte"] for run in (runs[0], runs[2])]
    pooled = compared.groups[0].values["result"]
    assert (pooled.mean, pooled.spread) == (
        pytest.approx(np.mean(results)),
        pytest.approx(abs(results[0] - results[1]) / math.sqrt(2)),
    )
    assert compared.groups[1].values["result"].values == [runs[1].outcome["validation"]["bits_per_byte"]]
    assert compared.seconds == min(run.outcome["seconds"] for run in runs)
    header, *rows = table_of(compared, times=False)
    assert header[:2] == ("run", "seeds") and "bits per byte" in header and "seconds" not in header
    assert "±" in " ".join(rows[0]) and "±" not in " ".join(rows[1])


def test_the_verb_prints_a_table_json_and_a_page_without_requests(runs: list[Run], tmp_path: Path, capsys: Any) -> None:
    paths = [str(run.path) for run in runs]
    assert main(["compare", *paths, "--to", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr().out
    assert "top_k=3" in printed and "model.moe.router.top_k: 2 -> 3" in printed
    page = (tmp_path / "page.html").read_text()
    assert "default-src 'none'" in page and "top_k: 2 -&gt; 3" in page
    assert main(["compare", *paths, "--json"]) == 0
    assert [group["label"] for group in json.loads(capsys.readouterr().out)["groups"]] == ["tiny", "top_k=3"]


def test_mistakes_are_named(runs: list[Run], tmp_path: Path) -> None:
    with pytest.raises(MoekitError, match="no run is given to compare"):
        compare_runs([])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "spec.yaml").write_text((runs[0].path / "spec.yaml").read_text())
    with pytest.raises(MoekitError, match="has logged nothing yet"):
        compare_runs([moekit.open(tmp_path / "empty")])


def test_a_missing_value_stays_missing() -> None:
    assert Pooled.of([math.nan, 1.0]).text(2) == "-"
    assert (Pooled.of([1.0]).text(2), Pooled.of([1.0, 3.0]).text(1)) == ("1.00", "2.0 ± 1.4")
