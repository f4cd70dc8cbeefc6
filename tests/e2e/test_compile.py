"""``compile: true`` changes no figure: the parts of the stack go through ``torch.compile`` where they stand."""

from __future__ import annotations

import pytest

from moekit.training.trainer import quiet
from tests.e2e import sharded_run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's tracer looks there
def test_a_compiled_model_trains_as_it_does_without() -> None:
    run = {"recipe": "deepseek_v3", "precision": "32-true", "steps": 2, "accumulate": 2}
    with quiet():
        plain = sharded_run.train(run)
        compiled = sharded_run.train({**run, "options": ["compile=true"]})
    apart = {what: sharded_run.apart(compiled[what], plain[what]) for what in plain}
    assert apart["load"] == apart["dropped"] == 0
    assert max(apart.values()) <= 1e-5, apart
