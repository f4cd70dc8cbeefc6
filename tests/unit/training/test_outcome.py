"""The results of a run as numbers."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from moekit.spec import load
from moekit.spec.fields import MetricInfo
from moekit.training.metrics import headline
from moekit.training.run.outcome import experts_per_token, steps_in_same_time


def rows_of(steps: int, seconds: float) -> dict[int, dict[str, float]]:
    return {step: {"seconds": seconds * step / steps, "val/loss": 1.0} for step in (steps // 2, steps)}


@pytest.mark.parametrize(("seconds", "steps"), [(20.0, 200), (15.0, 150), (5.0, 50), (10.1, 0), (9.9, 0), (0.01, 1)])
def test_the_dense_model_gets_the_steps_that_fit_into_the_mixtures_time(seconds: float, steps: int) -> None:
    """None of its own if they would be within 2 % those that it has trained."""
    assert steps_in_same_time(rows_of(100, seconds), rows_of(100, 10.0)) == steps


def test_without_validation_no_dense_model_trains_as_long() -> None:
    dense = {step: {"seconds": row["seconds"]} for step, row in rows_of(100, 10.0).items()}
    assert steps_in_same_time(rows_of(100, 20.0), dense) == steps_in_same_time(rows_of(100, 20.0), {}) == 0


def test_experts_per_token_are_the_mean_over_all_logged_steps() -> None:
    assert experts_per_token({1: {"train/experts_per_token": 2.0}, 2: {"train/experts_per_token": 1.5}, 3: {}}) == 1.75
    assert experts_per_token({1: {"train/loss": 2.0}}) is None


def test_the_main_metric_is_the_first_headline_that_validation_logged() -> None:
    text, cases = load("deepseek_v3"), load("jacobs1991")
    assert headline(text, {"val/loss", "val/bits_per_byte"}) == ("bits_per_byte", text_metrics()["bits_per_byte"])
    assert headline(text, {"val/loss", "train/bits_per_byte"})[0] == "loss"
    assert headline(text, {"val/loss"})[1].with_unit() == "loss (nats per token)"
    assert headline(cases, {"val/loss", "val/blend_mse"})[1].with_unit() == "loss"


def text_metrics() -> Mapping[str, MetricInfo]:
    objective = load("deepseek_v3").objective
    assert objective is not None
    return objective.metrics()
