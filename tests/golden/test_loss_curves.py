"""Two tiny recipes train to the stored losses, loads and drops (see ``loss_curves.py``)."""

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
def test_fifty_steps_of_training_give_the_stored_losses(name: str, tmp_path: Path) -> None:
    stored = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    with quiet():
        found = curve(name, tmp_path)
    same_bits = stored.pop("machine") == machine()
    expected = stored["loss"] if same_bits else pytest.approx(stored["loss"], rel=ROUNDING)
    how = f"if the change is intended: python tests/golden/loss_curves.py {name}"
    assert found["loss"] == expected, how
    assert {key: found[key] for key in ("dropped", "load")} == {key: stored[key] for key in ("dropped", "load")}, how


def test_the_stored_curves_learn_and_drop() -> None:
    """So that a change of either changes a stored number."""
    curves = {name: json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) for name in CURVES}
    for stored in curves.values():
        assert len(stored["loss"]) == STEPS and stored["loss"][-1] < 0.8 * stored["loss"][0]
        assert all(sum(load) > 0 and len(set(load)) > 1 for load in stored["load"].values())
    assert sum(curves["deepseek_v3"]["dropped"]) == 0 < sum(curves["switch"]["dropped"])
