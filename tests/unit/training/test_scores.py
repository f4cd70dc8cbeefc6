"""Scores of the trained model: measured where data has some, told in words."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from torch import nn

from moekit.contracts import Batch, Data, Model
from moekit.training.run.console import score_rows
from moekit.training.run.train import evaluate


class Silent(Data):
    def prepare(self) -> None: ...

    def train_batch(self, generator: Any) -> Batch:
        raise NotImplementedError

    def validation_batches(self) -> Any:
        raise NotImplementedError


class Scored(Silent):
    def scores(self, model: Model) -> dict[str, float]:
        return {"bleu": 12.3456, "scored_pairs": 1256.0}


@pytest.mark.parametrize(
    ("data", "told"), [(None, ""), (Silent(), ""), (Scored(), "tiny: scoring the trained model\n")]
)
def test_data_with_scores_is_asked_and_it_is_said(data: Data | None, told: str) -> None:
    out = StringIO()
    found = evaluate(data, nn.Identity(), "tiny", Console(file=out))  # type: ignore[arg-type]
    assert found == ({"bleu": 12.3456, "scored_pairs": 1256.0} if told else {})
    assert out.getvalue() == told


def test_scores_in_words_beside_the_dense_model() -> None:
    scores = {"bleu": 12.3456, "placeholders_kept": 0.5, "scored_pairs": 1256.0}
    assert score_rows(scores) == [("BLEU", "12.35"), ("placeholders kept", "0.5"), ("scored pairs", "1,256")]
    dense = {"bleu": 11.0, "scored_pairs": 1256.0}
    assert score_rows(scores, dense)[0] == ("BLEU", "12.35   (dense 11)")
    assert score_rows(scores, dense)[1:] == score_rows(scores)[1:]
    assert score_rows({}, dense) == []
