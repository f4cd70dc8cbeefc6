"""The domain of a text as a target, and the share of labels that a model gets right."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from moekit.contracts import Batch, Model, ModelOutput
from moekit.errors import DataError
from moekit.inference.evaluation import evaluate
from moekit.registry import build
from moekit_data.accuracy import Accuracy
from moekit_data.labelled_text import LabelledText
from moekit_data.labelled_text.module import LabelledTextData
from moekit_data.padding import side_by_side
from moekit_data.span_corruption import SpanCorruption
from moekit_data.text_files import TextFiles

END = 256


@pytest.fixture
def data(tmp_path: Path) -> LabelledTextData:
    for domain in ("ab", "wxyz"):
        (tmp_path / domain).mkdir()
        for n in range(6):
            (tmp_path / domain / f"{n}.txt").write_text(f"{n}" + domain[0] * 100)
    spec = LabelledText(text=TextFiles(path=str(tmp_path), seq=16, batch=4, validation_windows=3))
    made = cast(LabelledTextData, build(spec))
    made.prepare()
    return made


def score(data: LabelledTextData, model: Model) -> dict[str, float]:
    return dict(evaluate({"accuracy": build(Accuracy())}, model, data, Path()).values)


class Classifier(Model):
    """Gives the label of the letter that the source consists of, or always the same one."""

    def __init__(self, data: LabelledTextData, always: str = "") -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.data, self.always = data, always

    def forward(self, inputs: Tensor, *, valid: Tensor | None = None) -> ModelOutput:
        raise NotImplementedError

    def on(self, batch: Batch) -> ModelOutput:
        assert batch.source is not None and not self.training
        y_BSV = torch.zeros(*batch.inputs.shape, self.data.spec.vocab)
        for b, source in enumerate(batch.source.tokens):
            name = self.always or ("ab" if (source == ord("a")).sum() > 4 else "wxyz")
            answer = [*name.encode(), END, *[7] * 99]  # nonsense where padding is
            for s in range(batch.inputs.shape[1]):
                y_BSV[b, s, answer[s]] = 1.0
        return ModelOutput(y=y_BSV)


def test_the_target_is_the_name_of_the_windows_domain(data: LabelledTextData) -> None:
    batch = data.train_batch(torch.Generator().manual_seed(0))
    windows = data.text.train_batch(torch.Generator().manual_seed(0)).targets
    assert batch.source is not None and batch.source.valid is not None
    assert batch.valid is not None and batch.domain is not None and batch.num_bytes is None
    assert set(batch.domain.tolist()) == {0, 1}
    for b, name in enumerate(("ab", "wxyz")[i] for i in batch.domain.tolist()):
        assert batch.targets[b][batch.valid[b]].tolist() == [*name.encode(), END]
        assert batch.inputs[b][batch.valid[b]].tolist() == [END, *name.encode()]
        assert torch.equal(batch.source.tokens[b][batch.source.valid[b]], windows[b])


@pytest.mark.parametrize(("always", "accuracy"), [("", 1.0), ("ab", 0.5), ("wxyz", 0.5), ("a", 0.0), ("abc", 0.0)])
def test_accuracy_counts_whole_labels(data: LabelledTextData, always: str, accuracy: float) -> None:
    model = Classifier(data, always).train()
    assert score(data, model) == {"accuracy": accuracy, "guessing": 0.5, "scored_windows": 6.0}
    assert model.training  # as it was


def test_the_vocabulary_is_that_of_span_corruption(data: LabelledTextData) -> None:
    other = build(SpanCorruption(text=data.spec.text))
    assert other.spec.vocab == data.spec.vocab and other.tokenizer.end == data.tokenizer.end == END
    assert data.tokenizer.decode(data.tokenizer.encode("wxyz")) == "wxyz"
    assert data.tokenizer.decode(torch.tensor([97, END, 98])) == "a"


def test_a_single_domain_is_refused(tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / f"{n}.txt").write_text(f"{n}" + "words " * 40)
    data = build(LabelledText(text=TextFiles(path=str(tmp_path), seq=8)))
    with pytest.raises(DataError, match="labels are the names of domains, and the text has only text"):
        data.prepare()


def test_a_vocab_without_an_end_is_refused() -> None:
    with pytest.raises(
        ValueError, match="vocab=256 is too small for the 256 tokens of TextFiles and its own: 257 or more are needed"
    ):
        LabelledText(text=TextFiles(path="nowhere"), vocab=256)


def test_guessing_is_the_frequency_of_the_commonest_label(
    data: LabelledTextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than one over the number of labels: always answering with the commonest one is not an achievement."""
    batch = side_by_side(
        [torch.tensor([1, 2])] * 4,
        [torch.tensor([n]) for n in (7, 7, 6, 7)],
        end=END,
        domain=torch.tensor([1, 1, 0, 1]),
    )
    monkeypatch.setattr(data, "validation_batches", lambda: iter([batch]))
    assert score(data, Classifier(data, "abc")) == {"accuracy": 0.0, "guessing": 0.75, "scored_windows": 4.0}
