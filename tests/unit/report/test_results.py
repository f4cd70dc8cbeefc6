"""The results of a run in its report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moekit.run import Run
from moekit.spec.fields import MetricInfo
from moekit.training.run.folder import RunFolder
from moekit.training.run.outcome import Comparison, Outcome, write_summary
from moekit_report.results import against_dense

COMPARED = Comparison(
    metric="loss", moe=2.0, dense=2.1, dense_as_long=1.9, as_long_steps=30, moe_seconds=60.0, dense_seconds=40.0,
    as_long_seconds=59.0, moe_work=8.0, dense_work=8.0, moe_active=20, dense_active=20, moe_total=90,
)  # fmt: skip


@pytest.mark.parametrize("as_long", [1.9, None])
def test_a_run_is_compared_with_the_dense_models_that_its_summary_names(tmp_path: Path, as_long: float | None) -> None:
    folder = RunFolder(tmp_path)
    compared = replace(COMPARED, dense_as_long=as_long)
    outcome = Outcome(
        label="a run", folder=tmp_path, steps=30, tokens=900.0, seconds=60.0, train={}, validation={"loss": 2.0},
        max_violation=None, dropped=None, dropped_tokens=None, experts_per_token=None, work=None, stopped_after=None,
        total=90, active=20, comparison=compared,
    )  # fmt: skip
    write_summary(folder.summary, outcome)
    found = against_dense(Run(folder), "loss", MetricInfo("loss"))
    assert [(each.level, "better" in each.text) for each in found][:1] == [("good", True)]
    assert [each.level for each in found[1:]] == ([] if as_long is None else ["note"])
    assert all("that trained for the same 60 s" in each.text for each in found[1:])
