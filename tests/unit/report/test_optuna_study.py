"""What Optuna says of results, asked anew each time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from moekit.cli import main
from moekit_report.optuna_study import Result, is_worse_than_most, propose
from moekit_report.sweeping import parse


def test_waiting_points_are_avoided() -> None:
    pytest.importorskip("optuna")
    sweep = parse("switch", ["a.k=1..1000"], seeds=1, tpe=30)
    results = [Result(options=(f"a.k={k}",), value=abs(k - 500), curve={}, is_pruned=False) for k in range(1, 1000, 40)]
    assert propose(sweep, results) != propose(sweep, results, [propose(sweep, results)])


def curve(*values: float) -> dict[int, float]:
    return {10 * (i + 1): value for i, value in enumerate(values)}


def test_a_trial_worse_than_the_median_ends_after_a_quarter_of_its_steps() -> None:
    pytest.importorskip("optuna")
    others = [Result(options=(), value=v, curve=curve(3, 2, v), is_pruned=False) for v in (1.0, 1.1, 1.2, 1.3)]

    def ends(values: dict[int, float], others: list[Result] = others, *, lower: bool = True) -> bool:
        return is_worse_than_most(values, others, max_steps=40, lower_is_better=lower)

    assert ends(curve(5, 2.5)) and not ends(curve(5, 1.9))
    assert not ends(curve(5, 2.5), lower=False) and ends(curve(1, 1), lower=False)
    assert not ends({5: 9.0}) and not ends(curve(5, 2.5), others[:3]) and not ends({})
    assert not ends(curve(3, 2, 1, 9))  # it has come to its end


def test_without_optuna_the_extra_is_named_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["sweep", "switch", "optimizer.lr=1e-3..1e-2", "--tpe", "4", "--out", str(tmp_path)]) != 0
    assert "pip install 'moekit[optuna]'" in capsys.readouterr().err and list(tmp_path.iterdir()) == []
