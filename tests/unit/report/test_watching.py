"""The view in a terminal: what a run has logged, from its files alone, at any width."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import moekit
from moekit.cli import main
from moekit.errors import MoekitError
from moekit.run import Run
from moekit_report.watching import check_interval, load_blocks, snapshot, sparkline, view


def text_of(run: Run, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(view(snapshot(run), width))
    return console.export_text()


@pytest.mark.parametrize("width", [60, 80, 140])
def test_it_shows_metrics_and_loads_at_any_width(run: Run, width: int) -> None:
    text = text_of(run, width)
    assert "tiny, step 8 of 8, complete" in text
    assert f"{run.metrics['train/bits_per_byte'][-1]:.3f}" in text
    for name in ("blocks.1.ffn", "blocks.2.ffn"):
        (line,) = [line for line in text.splitlines() if name in line]
        assert "0 of 4" in line
    assert max(map(len, text.splitlines())) <= width


def test_a_run_that_has_logged_nothing_yet_has_a_title(run: Run, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text((run.path / "spec.yaml").read_text())
    assert text_of(moekit.open(tmp_path), 80).strip() == "tiny, step 0 of 8"


def test_blocks_are_proportional() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 7, 7], 2) == "▁█" and sparkline([], 5) == sparkline([np.nan], 5) == ""
    assert sparkline([3, 3], 5) == "▁▁"
    assert load_blocks(np.array([0, 1, 2, 9.0]), 10) == " ▄██"
    assert load_blocks(np.ones(64), 16) == "▄" * 16


def test_the_verb_prints_once_where_there_is_no_terminal(run: Run, capsys: Any) -> None:
    assert main(["watch", str(run.path)]) == 0
    assert "blocks.2.ffn" in capsys.readouterr().out
    with pytest.raises(MoekitError, match="--every 0: expected seconds"):
        check_interval(0)
