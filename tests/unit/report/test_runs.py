"""``moekit ls runs``: every run below a folder, whatever its state; dense baselines are not runs of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import moekit
from moekit.cli import main

SMALL = ["trainer.max_steps=4", "trainer.val_check_interval=2"]


def test_runs_are_listed_with_their_state_and_result(tmp_path: Path, capsys: Any) -> None:
    done = moekit.train("jacobs1991", SMALL, out=tmp_path, quiet=True)
    (tmp_path / "b" / "2026-01-01_00-00-00").mkdir(parents=True)
    (tmp_path / "b" / "2026-01-01_00-00-00" / "spec.yaml").write_text((done.path / "spec.yaml").read_text())
    half = tmp_path / "b" / "2026-01-02_00-00-00"
    half.mkdir()
    for name in ("spec.yaml", "metrics.csv"):
        (half / name).write_bytes((done.path / name).read_bytes())
    assert main(["ls", "--json", "runs", "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(Path(row["run"]).name, row["state"], row["steps"]) for row in found] == [
        ("2026-01-01_00-00-00", "begun", 0),
        ("2026-01-02_00-00-00", "begun", 4),
        (done.path.name, "complete", 4),
    ]
    assert found[-1]["value"] == pytest.approx(done.outcome["validation"][found[-1]["metric"]])
    (half / "checkpoints").mkdir()
    (half / "checkpoints" / "step-00000004").mkdir()
    (half / "checkpoints" / "last").write_text("step-00000004\n")
    assert main(["ls", "runs", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "resumable" in printed and "complete" in printed and done.path.as_posix() in printed
    assert main(["ls", "runs", "--out", str(tmp_path / "none")]) == 0
    assert "no runs below" in capsys.readouterr().out
