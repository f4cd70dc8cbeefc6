"""What is derived from recorded tables equals a count by hand, and MaxVio is the one that training logs."""

from __future__ import annotations

import numpy as np
import pytest

from moekit import MoekitError
from moekit.run import Run
from moekit_report.reading import last_matrix, last_pairs, layer_logs


def test_max_violation_is_what_training_and_validation_log(run: Run) -> None:
    for part, metric in (("train", "train/max_violation"), ("val", "val/max_violation")):
        logs = layer_logs(run.routing, part)
        assert list(logs) == ["blocks.1.ffn", "blocks.2.ffn"]
        logged = dict(zip(run.metrics["step"], run.metrics[metric], strict=True))
        steps = next(iter(logs.values())).step_X.tolist()
        mean_X = np.mean([log.max_violation_X for log in logs.values()], axis=0)
        assert dict(zip(steps, mean_X, strict=True)) == pytest.approx(
            {step: value for step, value in logged.items() if value is not None}
        )


def test_dead_and_starved_experts_and_percentiles_by_hand() -> None:
    load = np.array([[0, 1, 2, 97, 0], [20, 20, 20, 20, 20]])
    experts = {
        "step": np.repeat([1, 2], 5), "part": np.array(["train"] * 10, object),
        "layer": np.array(["x.10"] * 10, object), "expert": np.tile(np.arange(5), 2), "load": load.ravel(),
        "bias": np.full(10, np.nan),
    }  # fmt: skip
    layers = {"step": np.array([1, 2]), "part": experts["part"][:2], "layer": experts["layer"][:2]}
    log = layer_logs({"experts": experts, "layers": layers}, "train")["x.10"]
    assert log.dead_X.tolist() == [2, 0]
    assert log.starved_X.tolist() == [3, 0]  # 2 of 20 is a tenth, not less
    assert log.max_violation_X.tolist() == [pytest.approx(97 / 20 - 1), 0]
    assert log.percentiles([0, 50, 100]).tolist() == [[0, 0.05, 4.85], [1, 1, 1]]


def test_matrices_of_the_last_validation_sum_to_its_load(run: Run) -> None:
    tables = run.routing
    logs = layer_logs(tables, "val")
    domains = sorted(set(tables["domains"]["domain"]))
    by_domain = last_matrix(tables, "domains", "domain", domains)
    pairs = last_pairs(tables, dict.fromkeys(logs, 4))
    for name, log in logs.items():
        assert by_domain[name].sum(0).tolist() == log.load_XE[-1].tolist()
        assert pairs[name].sum(1).tolist() == log.load_XE[-1].tolist()  # of two experts a token, each has one other
        assert (pairs[name] == pairs[name].T).all()
    assert layer_logs({}, "val") == last_matrix({}, "domains", "domain", []) == last_pairs({}, {}) == {}


def test_a_table_without_a_column_is_named() -> None:
    tables = {"experts": {name: np.zeros(0) for name in ("step", "part", "layer", "expert", "load")}}
    with pytest.raises(MoekitError, match="table 'experts' has no column 'bias'"):
        layer_logs(tables, "train")
    tables["experts"]["bias"] = np.zeros(0)
    with pytest.raises(MoekitError, match="table 'layers' has no column 'step'"):
        layer_logs(tables, "train")
