"""``compile: true`` changes no number: each block of the stack is compiled in place by ``torch.compile``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sharded_run
import torch
from ranks import run_ranks

from moekit.training.run.prepare import quiet

RUN = {"recipe": "deepseek_v3", "precision": "32-true", "steps": 2}
ROUNDING = 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # read by torch's tracer
def test_a_compiled_model_trains_as_an_uncompiled_one() -> None:
    run = {**RUN, "accumulate": 2}
    with quiet():
        plain = sharded_run.train(run)
        compiled = sharded_run.train({**run, "options": ["compile=true"]})
    apart = {what: sharded_run.apart(compiled[what], plain[what]) for what in plain}
    assert apart["load"] == apart["dropped"] == 0
    assert max(apart.values()) <= ROUNDING, apart


@pytest.mark.slow
def test_a_compiled_sharded_model_trains_as_an_uncompiled_one_in_one_process(tmp_path: Path) -> None:
    """On two ranks without and with a shared expert group: losses, gradients, weights."""
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
