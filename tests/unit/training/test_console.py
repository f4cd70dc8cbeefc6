"""The summary of a run: scores, the comparison with the dense baseline, MaxVio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from training_helpers import trainer

from moekit.spec.fields import MetricInfo
from moekit.training import LitMoE
from moekit.training.run.console import comparison_lines, print_summary, score_rows
from moekit.training.run.folder import RunFolder
from moekit.training.run.outcome import Outcome, compare, outcome_of


def test_scores_are_printed_with_those_of_the_dense_model() -> None:
    scores = {"bleu": 12.3456, "placeholders_kept": 0.5, "scored_pairs": 1256.0}
    metrics = {"bleu": MetricInfo("BLEU", digits=2), "scored_pairs": MetricInfo("pairs", digits=0)}
    assert score_rows(scores, metrics) == [("BLEU", "12.35"), ("placeholders kept", "0.500"), ("pairs", "1,256")]
    dense = {"bleu": 11.0, "scored_pairs": 1256.0}
    assert score_rows(scores, metrics, dense)[0] == ("BLEU", "12.35   (dense 11.00)")
    assert score_rows(scores, metrics, dense)[1:] == score_rows(scores, metrics)[1:]
    assert score_rows({}, metrics, dense) == []


def outcome(seconds: float, value: float, steps: int = 10) -> Outcome:
    return Outcome(
        label="m", folder=Path("runs/m/1"), steps=steps, tokens=1000.0, seconds=seconds, train={}, max_violation=None,
        validation={"bits_per_byte": value}, dropped=None, dropped_tokens=None, experts_per_token=None, work=1234.4,
        stopped_after=None, total=9, active=3, metric="bits_per_byte",
    )  # fmt: skip


def test_the_comparison_names_the_better_model_per_token_and_per_second() -> None:
    """Per second, with the dense model that trained as long, and not with either in mid-schedule."""
    found = compare(outcome(20.0, 2.0), outcome(10.0, 2.2), outcome(20.4, 1.9, steps=20))
    assert (found.dense_as_long, found.as_long_steps, found.as_long_seconds) == (1.9, 20, 20.4)
    metrics = {"bits_per_byte": MetricInfo("bits per byte")}
    lines = comparison_lines(found, outcome(20.0, 2.0), metrics)
    assert lines[0].endswith("(bits per byte, lower is better):")
    assert lines[2].endswith("1,234 multiply-adds a token; dense 1,234")
    assert "2.000, dense 2.200, after the same 1,000 tokens: the mixture is better by 0.200 (9.1%)" in lines[3]
    assert "2.000, dense 1.900, after the same 20 s: the dense model is better by 0.100 (5.0%)" in lines[4]
    assert lines[5].strip() == "(the dense model trained 20 steps in 20 s, with a schedule over them)"
    even = compare(outcome(10.0, 2.0), outcome(10.0, 2.2), None)
    assert even.dense_as_long is None
    assert comparison_lines(even, outcome(10.0, 2.0), metrics)[4].endswith(
        "the same: a step of each takes as long here"
    )


def test_a_score_is_compared_the_other_way_round() -> None:
    found = replace(compare(outcome(20.0, 0.5), outcome(10.0, 0.75), None), metric="share")
    metrics = {"share": MetricInfo("share of it", lower_is_better=False, digits=2)}
    lines = comparison_lines(found, outcome(20.0, 0.5), metrics)
    assert lines[0].endswith("(share of it, higher is better):")
    assert lines[3].endswith("0.50, dense 0.75, after the same 1,000 tokens: the dense model is better by 0.25 (33.3%)")


@pytest.mark.usefixtures("quiet_lightning")
def test_the_summary_has_the_maxvio_of_the_validation_set(
    recipe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    module, t = LitMoE(recipe()), trainer(3)
    t.fit(module)
    rows = {3: {**module.logged, **{k: float(v) for k, v in t.callback_metrics.items() if k[:4] == "val/"}}}
    outcome = outcome_of("tiny", RunFolder(tmp_path), module, rows)
    out = StringIO()
    print_summary(replace(outcome, files=[tmp_path / "loss.png"]), module, Console(file=out, width=120))
    value = rows[3]["val/max_violation"]
    assert outcome.validation["max_violation"] == value
    (line,) = [line for line in out.getvalue().splitlines() if "MaxVio" in line]
    assert line.endswith(f"at the end, {value:.2f} over the validation set (0 is an even load)")
    assert "max violation" not in out.getvalue()  # it has no row of its own
