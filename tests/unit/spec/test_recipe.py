"""The parts of a recipe must fit each other: model, data, objective and evaluators; what is logged, and ``stop``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import ClassVar

import pytest
from pages import cases
from spec_fakes import check_overrides

from moekit.errors import SpecError
from moekit.spec import load
from moekit.spec.fields import MetricInfo, Spec, metrics_of, slot, slots
from moekit.spec.kinds import DataSpec, EvaluatorSpec, ObjectiveSpec, TokenizerSpec

REPORTS = r"""
$ data=cases model.vocab=9  # conflict of model and data
data Cases yields 'cases', but model Tower takes 'tokens'; others: moekit ls data, moekit ls models
  in small.yaml

$ 'model={use: stack}' data=cases  # conflict of model and objective
objective Next takes next_token, but model Stack gives 'mixture'
  in small.yaml
"""


@cases(REPORTS)
def test_a_model_that_does_not_fit_its_data_or_objective_is_reported(given: str, expected: str) -> None:
    check_overrides(given, expected)


PAPER = "jacobs1991"


@pytest.mark.usefixtures("real_plugins")
@pytest.mark.parametrize(
    ("recipe", "overrides", "sentences"),
    [
        (
            PAPER,
            ["stop.metric=train/blend_mes"],
            ["stop.metric: training logs no metric 'train/blend_mes' (did you mean 'train/blend_mse'?); the "],
        ),
        (
            PAPER,
            ["stop.metric=loss"],
            ["training logs no metric 'loss'", "the metrics are train/objective, train/loss"],
        ),
        ("gshard", ["stop={metric: val/bleu, below: 1}"], ["training logs no metric 'val/bleu'"]),
        ("deepseek_v3", ["stop={metric: val/exact, below: 0}"], ["training logs no metric 'val/exact'"]),
        (
            PAPER,
            ["evaluators.score={use: bleu}"],
            ["evaluator 'score': Bleu takes pairs, but data Vowels yields 'cases'"],
        ),
        (
            "shazeer2017",
            ["data.documents=masked"],
            ["data.documents=masked, but LSTM cannot keep documents apart; try joined"],
        ),
        (
            PAPER,
            ["stop.metric=val/accuracy", "trainer.limit_val_batches=0"],
            ["stop.metric: val/accuracy is never known, for trainer.limit_val_batches=0 validates nothing"],
        ),
        (PAPER, ["data=null"], ["evaluator 'regions': it needs data, and the recipe has none"]),
    ],
)
def test_parts_that_do_not_fit_are_named(recipe: str, overrides: list[str], sentences: list[str]) -> None:
    with pytest.raises(SpecError, match=re.escape(sentences[0])) as caught:
        load(recipe, overrides)
    assert all(sentence in str(caught.value) for sentence in sentences)


@pytest.mark.usefixtures("real_plugins")
def test_metrics_that_are_declared_may_stop_a_run() -> None:
    for metric in ("train/blend_mse", "val/accuracy", "train/loss", "train/objective"):
        assert load(PAPER, [f"stop.metric={metric}"]).stop is not None
    assert load("deepseek_v3", ["stop={metric: val/max_violation, below: 1}"]).stop is not None
    assert load("deepseek_v3", ["objective.exact=true", "stop={metric: val/exact, below: 0}"]).stop is not None


@pytest.mark.usefixtures("real_plugins")
def test_null_deletes_an_evaluator() -> None:
    assert list(load("gshard").evaluators) == ["bleu"]
    assert load("gshard", ["evaluators.bleu=null"]).evaluators == {}


class Sums(ObjectiveSpec):
    def metrics(self) -> Mapping[str, MetricInfo]:
        return {"inner": MetricInfo("inner"), "both": MetricInfo("the objective's")}


class Scores(EvaluatorSpec):
    takes: ClassVar[frozenset[str]] = frozenset({"cases"})

    def metrics(self) -> Mapping[str, MetricInfo]:
        return {"score": MetricInfo("score")}

    def check_data(self, data: DataSpec) -> Iterable[str]:
        yield "never fits"


class Outer(Spec):
    objective: ObjectiveSpec | None = slot("objective", "an objective", optional=True)
    evaluators: Mapping[str, EvaluatorSpec] = slots("evaluator", "evaluators")

    def metrics(self) -> Mapping[str, MetricInfo]:
        return {"both": MetricInfo("its own")}


def test_metrics_are_those_of_all_parts_and_the_outer_ones_win() -> None:
    spec = Outer(objective=Sums(), evaluators={"a": Scores()})
    found = metrics_of(spec)
    assert {name: info.label for name, info in found.items()} == {
        "inner": "inner", "both": "its own", "score": "score"
    }  # fmt: skip
    assert set(metrics_of(spec, without="evaluator")) == {"inner", "both"}
    assert metrics_of(Outer()) == {"both": MetricInfo("its own")}


def test_a_metric_is_formatted_with_its_digits_and_unit() -> None:
    info = MetricInfo("loss", unit="nats", digits=2)
    assert (info.format(1234.567), info.with_unit()) == ("1,234.57", "loss (nats)")
    assert MetricInfo("pairs", digits=0).format(256.0) == "256" and MetricInfo("pairs").with_unit() == "pairs"


class Tokens(TokenizerSpec):
    pass


class Text(DataSpec):
    tokenizer: TokenizerSpec = slot("tokenizer", "of its text", default=Tokens(vocab=12))


class Fixed(Text):
    vocab: ClassVar[int] = 15


def test_the_number_of_tokens_is_that_of_the_data_or_of_its_tokenizer() -> None:
    assert (DataSpec().num_tokens(), Text().num_tokens(), Fixed().num_tokens()) == (None, 12, 15)
