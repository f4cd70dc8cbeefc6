"""``moekit reproduce``: mistakes, the list, options, and a claim that another plugin offers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fake_study
import pytest
import torch
from fake_plugins import module

from moekit.cli import main
from moekit.component import Component
from moekit.registry import current, temporary
from moekit.spec.fields import option
from moekit_reproduce.study import ClaimSpec, Study

Captured = pytest.CaptureFixture[str]


class Ours(ClaimSpec):
    """A claim of a plugin of somebody else."""

    ratio: float = option(2.0, "of neighbouring rates", gt=1)


def ours(spec: Ours) -> Study:
    return fake_study.study(rates=(10.0, 10.0 * spec.ratio, 10.0 * spec.ratio**2))


@pytest.fixture
def with_ours() -> Iterator[None]:
    fake_study.calls.clear()
    claim = Component(name="ours", spec=Ours, target=ours, summary="b is better than a", paper="Author 1999")
    with temporary(module("acme", components=[claim])):
        yield


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "reproduce takes papers or --all, not both\n  expected some of jacobs1991, shazeer2017, gshard"),
        (["switch", "--all"], "reproduce takes papers or --all, not both"),
        (["swich"], "unknown claim 'swich'"),
        (["swich"], "did you mean 'switch'?"),
        (["switch", "step=3"], "claim 'switch' has no option 'step'"),
        (["switch", "steps=0"], "steps: 0 is out of range"),
        (["switch", "--seeds", "1"], "seeds: 1 is out of range"),
        (["switch", "--threads", "0"], "--threads 0: expected 1 or more"),
    ],
)
def test_mistakes_are_reported_before_anything_runs(
    words: list[str], said: str, capsys: Captured, tmp_path: Path
) -> None:
    assert main(["reproduce", "--out", str(tmp_path), *words]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_list_has_every_paper_oldest_first(capsys: Captured) -> None:
    assert main(["reproduce", "--list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names[:3] == ["jacobs1991", "shazeer2017", "gshard"]
    assert set(names) == {claim.name for claim in current().components("claim")}


def test_a_claim_of_another_plugin_is_measured_plotted_and_written(
    with_ours: None, capsys: Captured, tmp_path: Path
) -> None:
    command = ["reproduce", "ours", "ratio=4", "--seeds", "4", "--out", str(tmp_path / "out")]
    assert main([*command, "--ledger", str(tmp_path / "ledger")]) == 0
    row = json.loads((tmp_path / "ledger" / "ledger" / "ours.json").read_text())
    assert (row["seeds"], row["claims"][0]["verdict"]) == (4, "holds")
    assert row["command"] == "moekit reproduce ours ratio=4 --seeds 4"
    assert list(row["arms"][0]["tried"]) == ["2.5", "10", "40", "160"]
    assert (tmp_path / "ledger" / "images" / "ledger-ours.png").is_file()
    assert "**holds**" in (tmp_path / "ledger" / "ledger.md").read_text()
    assert "holds" in capsys.readouterr().out
    count = len(fake_study.calls)
    assert main(command) == 0  # the ledger is next to the measurements, which are not repeated
    assert (tmp_path / "out" / "ledger.md").is_file() and len(fake_study.calls) == count


def test_the_quick_form_has_its_own_measurements_and_ledger(with_ours: None, tmp_path: Path) -> None:
    assert main(["reproduce", "ours", "--quick", "--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["quick"]
    row = json.loads((tmp_path / "quick" / "ledger" / "ours.json").read_text())
    assert row["quick"] and row["seeds"] == 2 and row["command"] == "moekit reproduce ours --quick"


def test_progress_is_a_line_for_each_measurement_where_there_is_no_terminal(
    with_ours: None, capsys: Captured, tmp_path: Path
) -> None:
    assert main(["reproduce", "ours", "--quick", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "  ours: a 20 seed 1: loss 1.9, 0 s" and len(lines) == 4
    assert torch.get_num_threads() == 1
