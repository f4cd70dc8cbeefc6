"""Evaluators run on a trained model: in evaluation mode, without gradients, one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from moekit.contracts import Data, Evaluation, Evaluator, Model, Trained
from moekit.errors import MoekitError
from moekit.inference.evaluation import evaluate
from moekit.spec.kinds import EvaluatorSpec
from moekit_testing.fixtures.evaluation import subject


class Tokens(EvaluatorSpec):
    takes = frozenset({"tokens"})


class Cases(EvaluatorSpec):
    takes = frozenset({"cases"})


class Notes(Evaluator):
    """Notes how it was called."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.seen: list[Trained] = []

    def evaluate(self, trained: Trained) -> Evaluation:
        assert not trained.model.training and not torch.is_grad_enabled()
        self.seen.append(trained)
        return Evaluation(values={"found": self.value}, files=[trained.folder / f"{self.value}.txt"])


def made(spec: EvaluatorSpec) -> tuple[Model, Data]:
    return cast("tuple[Model, Data]", subject(spec))


def test_evaluators_run_in_evaluation_mode_and_the_mode_is_restored(tmp_path: Path) -> None:
    model, data = made(Tokens())
    first, second = Notes(1.0), Notes(2.0)
    found = evaluate({"one": first, "two": second}, model.train(), data, tmp_path)
    assert found.values == {"found": 1.0, "two/found": 2.0}  # the second has the entry's name in front
    assert list(found.files) == [tmp_path / "1.0.txt", tmp_path / "2.0.txt"]
    assert model.training and first.seen == second.seen
    (trained,) = first.seen
    assert (trained.model, trained.data, trained.tokenizer) == (model, data, data.tokenizer)


def test_a_model_is_evaluated_on_the_device_that_it_was_trained_on(tmp_path: Path, monkeypatch: Any) -> None:
    model, data = made(Tokens())
    places: list[str] = []

    class Where(Notes):
        def evaluate(self, trained: Trained) -> Evaluation:
            places.append("evaluated")
            return super().evaluate(trained)

    monkeypatch.setattr(model, "to", lambda device: places.append(str(device)))
    evaluate({"one": Where(1.0)}, model, data, tmp_path, device=torch.device("cuda", 1))
    assert places == ["cuda:1", "evaluated", "cpu"]


def test_the_mode_is_restored_after_a_failure(tmp_path: Path) -> None:
    class Fails(Evaluator):
        def evaluate(self, trained: Trained) -> Evaluation:
            raise MoekitError("not today")

    model, data = made(Tokens())
    with pytest.raises(MoekitError, match="not today"):
        evaluate({"fails": Fails()}, model.train(), data, tmp_path)
    assert model.training


def test_a_text_is_continued_greedily(tmp_path: Path) -> None:
    model, data = made(Tokens())
    notes = Notes(0.0)
    evaluate({"one": notes}, model, data, tmp_path)
    prompt = notes.seen[0].tokenizer.encode("abc")
    (found,) = notes.seen[0].generate(prompt, max_tokens=4)
    ids = prompt
    for _ in range(4):
        ids = torch.cat([ids, model(ids[None]).y[0, -1:].argmax(-1)])
    assert found.tolist() == ids[3:].tolist() and found.dtype == torch.int64


def test_data_that_is_not_text_has_no_tokenizer(tmp_path: Path) -> None:
    model, data = made(Cases())
    notes = Notes(0.0)
    evaluate({"one": notes}, model, data, tmp_path)
    with pytest.raises(MoekitError, match="SmallData has no tokenizer: it is not text"):
        _ = notes.seen[0].tokenizer
