"""Tokenizers and evaluators with one fault each, by the check that must catch it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from healthy import Copied, CopyingExporter, KeepingConverter, Kept, Mean, MeanEvaluator, Runs, RunTokenizer, components
from torch import Tensor

from moekit import Component, Evaluation, MoekitError, Trained
from moekit.contracts import Weight
from moekit.spec.kinds import ModelSpec


class Floats(RunTokenizer):
    def encode(self, text: str) -> Tensor:
        return super().encode(text).float()


class TooMany(RunTokenizer):
    @property
    def spelling(self) -> Sequence[bytes]:
        return [*super().spelling, *[b"x"] * 99]


class EndsTexts(RunTokenizer):
    def encode(self, text: str) -> Tensor:
        return torch.cat([super().encode(text), torch.tensor([0])])


class ReplacesTabs(RunTokenizer):
    def decode(self, ids: Tensor) -> str:
        return super().decode(ids).replace("\t", " ")


class StumblesOverUnknown(RunTokenizer):
    def decode(self, ids: Tensor) -> str:
        return b"".join(self.spelling[i] for i in ids.tolist()).decode()


class CountsLetters(RunTokenizer):
    def num_bytes_V(self) -> Tensor:
        return super().num_bytes_V().clamp(max=2)


class EndHasAByte(RunTokenizer):
    def num_bytes_V(self) -> Tensor:
        return super().num_bytes_V().clamp(min=1)


class NoEnds(RunTokenizer):
    def stream(self, documents: Iterable[bytes]) -> Tensor:
        return torch.cat([self.encode(text.decode()) for text in documents])


COUNT = itertools.count()


class LearnsOtherwise(RunTokenizer):
    def train(self, documents: Iterable[bytes]) -> None:
        super().train(documents)
        self.words = self.words[next(COUNT) % 2 :]


class ForgetsWords(RunTokenizer):
    def state(self) -> dict[str, Any]:
        return {"words": []}


class SavesBytes(RunTokenizer):
    def state(self) -> dict[str, Any]:
        return {"words": self.words}


class Undeclared(MeanEvaluator):
    def found(self, value: float, file: Path) -> Evaluation:
        return Evaluation(values={"mean": value})


class NotFinite(MeanEvaluator):
    def found(self, value: float, file: Path) -> Evaluation:
        return Evaluation(values={"mean_output": value / float("inf") * float("inf")})


class WritesElsewhere(MeanEvaluator):
    def found(self, value: float, file: Path) -> Evaluation:
        return Evaluation(files=[Path(__file__)])


class Nothing(MeanEvaluator):
    def found(self, value: float, file: Path) -> Evaluation:
        return Evaluation()


class Trains(MeanEvaluator):
    def evaluate(self, trained: Trained) -> Evaluation:
        for parameter in trained.model.parameters():
            parameter.add_(1)
        return super().evaluate(trained)


class Counts(MeanEvaluator):
    def found(self, value: float, file: Path) -> Evaluation:
        return Evaluation(values={"mean_output": value + next(COUNT)})


class WritesOver(CopyingExporter):
    def export(self, checkpoint: Path, out: Path) -> Sequence[str]:
        (out / "model").write_text("new")
        raise MoekitError(f"{out} exists")


class Accepts(CopyingExporter):
    def export(self, checkpoint: Path, out: Path) -> Sequence[str]:
        return []


class Imagines(KeepingConverter):
    def convert(self, model: ModelSpec, checkpoint: Path) -> Mapping[str, Weight]:
        return {}


class StaysVague(KeepingConverter):
    def convert(self, model: ModelSpec, checkpoint: Path) -> Mapping[str, Weight]:
        raise MoekitError("it cannot be converted")


BROKEN: Mapping[str, list[Component]] = {
    "check_missing_run_named": components(Kept, Imagines, StaysVague),
    "check_token_numbers": components(Runs, Floats, TooMany, EndsTexts),
    "check_text_restored": components(Runs, ReplacesTabs, StumblesOverUnknown),
    "check_bytes_of_tokens": components(Runs, CountsLetters, EndHasAByte),
    "check_stream": components(Runs, NoEnds),
    "check_learning_repeats": components(Runs, LearnsOtherwise),
    "check_tokenizer_state": components(Runs, ForgetsWords, SavesBytes),
    "check_evaluation": components(Mean, Undeclared, NotFinite, WritesElsewhere, Nothing),
    "check_evaluated_model_unchanged": components(Mean, Trains),
    "check_evaluation_repeats": components(Mean, Counts),
    "check_existing_output_kept": components(Copied, WritesOver, Accepts),
}
