"""Training still takes the steps that it took: two tiny recipes against stored losses (see ``loss_curves.py``)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from loss_curves import CURVES, FOLDER, STEPS, curve, machine

from moekit.training.run.prepare import quiet

ROUNDING = 1e-6
"""Relative, on another processor or torch version. Measured: 4e-16 between torch versions, which add in another order;
1e-8 between instruction sets, since each rounds the fp32 initial weights differently."""


@pytest.mark.parametrize("name", CURVES)
def test_training_takes_the_steps_that_it_took(name: str, tmp_path: Path) -> None:
    stored = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    with quiet():
        found = curve(name, tmp_path)
    same_bits = stored.pop("machine") == machine()
    expected = stored["loss"] if same_bits else pytest.approx(stored["loss"], rel=ROUNDING)
    how = f"if training was meant to change: python tests/golden/loss_curves.py {name}"
    assert found["loss"] == expected, how
    assert {key: found[key] for key in ("dropped", "load")} == {key: stored[key] for key in ("dropped", "load")}, how


def test_the_stored_curves_learn_balance_and_drop() -> None:
    """So that a change of any of these would move a number."""
    curves = {name: json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) for name in CURVES}
    for stored in curves.values():
        assert len(stored["loss"]) == STEPS and stored["loss"][-1] < 0.8 * stored["loss"][0]
        assert all(sum(load) > 0 and len(set(load)) > 1 for load in stored["load"].values())
    assert sum(curves["deepseek_v3"]["dropped"]) == 0 < sum(curves["switch"]["dropped"])
