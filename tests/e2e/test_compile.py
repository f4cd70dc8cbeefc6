"""``compile: true`` changes no figure: the parts of the stack go through ``torch.compile`` where they stand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from moekit.training.run.prepare import quiet
from tests.e2e import sharded_run
from tests.ranks import run_ranks

RUN = {"recipe": "deepseek_v3", "precision": "32-true", "steps": 2}
ROUNDING = 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's tracer looks there
def test_a_compiled_model_trains_as_it_does_without() -> None:
    run = {**RUN, "accumulate": 2}
    with quiet():
        plain = sharded_run.train(run)
        compiled = sharded_run.train({**run, "options": ["compile=true"]})
    apart = {what: sharded_run.apart(compiled[what], plain[what]) for what in plain}
    assert apart["load"] == apart["dropped"] == 0
    assert max(apart.values()) <= ROUNDING, apart


@pytest.mark.slow
def test_a_compiled_model_in_shards_trains_as_one_process_does_without(tmp_path: Path) -> None:
    """Two ranks that cut everything up, then two that share the experts; losses, gradients, weights."""
    expected, plan, rows = (tmp_path / name for name in ("expected.pt", "plan.json", "rows.json"))
    with quiet():
        torch.save(sharded_run.train({**RUN, "accumulate": 2}), expected)
    layouts = [{**RUN, "accumulate": 1, "ep": ep, "expected": str(expected)} for ep in (1, 2)]
    plan.write_text(json.dumps([{**layout, "options": ["compile=true"]} for layout in layouts]))
    run_ranks(Path(sharded_run.__file__), 2, str(plan), str(rows), timeout=1800)
    found = json.loads(rows.read_text())
    assert [run["ep"] for run in found] == [1, 2]
    for run in found:
        assert run["graphs"] > 0, "nothing was compiled"
        assert run["apart"]["load"] == run["apart"]["dropped"] == 0
        assert max(run["apart"].values()) <= ROUNDING, run
