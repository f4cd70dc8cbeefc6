"""The results of a run as numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from moekit.spec import load
from moekit.spec.fields import MetricInfo
from moekit.training.metrics import headline
from moekit.training.run.outcome import value_at


def test_value_at_interpolates_a_curve() -> None:
    points = ([1.0, 3.0], [10.0, 20.0])
    assert [value_at(points, x) for x in (1.0, 2.0, 3.0, 9.0)] == [10.0, 15.0, 20.0, 20.0]
    assert math.isnan(value_at(points, 0.5)) and math.isnan(value_at(([], []), 1.0))


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
