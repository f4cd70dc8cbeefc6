"""The grid of ``benchmarks/dispatcher_grid.py``: its sizes, and that its table names the worst cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dispatcher_grid
import measured
import pytest


def cell(threads: int, over: float, plain: float) -> dict[str, Any]:
    def one(median: float) -> dict[str, Any]:
        ratios = {"fused": {"best": 1.0, "median": median}, "plain": {"best": plain, "median": plain}}
        return {"chosen": "onednn", "fastest": "fused", "ms": 2.0, "rounds": 5, "over": ratios}

    return {"shape": [64, 8, 8, 4, 1], "threads": threads, "both": one(over), "forward": one(1.0)}


def test_the_grid_has_forty_sizes_from_one_end_to_the_other() -> None:
    shapes = list(dispatcher_grid.shapes())
    assert len(shapes) >= 40
    ends = [(min(of), max(of)) for of in zip(*shapes, strict=True)]
    assert [ends[n] for n in (0, 1, 3, 4)] == [(64, 16384), (64, 1024), (4, 256), (1, 8)]


def test_the_table_names_the_worst_cell() -> None:
    text = measured.text(dispatcher_grid.table([cell(2, 1.02, 0.5), cell(1, 1.31, 0.7)]))
    assert "| 64, 8, 8, 4, 1 | 2 | `onednn` | 1.00 (1.02) | 1.00 (1.00) | 1.00 (1.31) | 1.00 (1.00) | 0.50 | |" in text
    words = " ".join(text.split())
    assert "in 4 of 4 cells by the best round and in 3 by the median" in words
    assert (
        "K = 64, 8, 8, 4, 1 with 1 thread, both: 1.31, where `auto` chose `onednn` and `fused` was the fastest" in words
    )


def test_cells_that_are_kept_are_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def counted(shape: Any, threads: int, budget: float) -> dict[str, Any]:
        calls.append(threads)
        return cell(threads, 1.0, 1.0) | {"shape": list(shape)}

    monkeypatch.setattr(dispatcher_grid, "cell", counted)
    monkeypatch.setattr(dispatcher_grid.CHOICES, "user", dispatcher_grid.CHOICES.user)
    kept = tmp_path / "cells.jsonl"
    for threads, measured_now in (("1", 1), ("2,1", 1), ("2,1", 0)):
        calls.clear()
        argv = ["dispatcher_grid.py", "--every", "1000", "--threads", threads, "--cells", str(kept)]
        monkeypatch.setattr("sys.argv", argv)
        dispatcher_grid.main()
        assert len(calls) == measured_now
    assert "The worst cell is" in capsys.readouterr().out
