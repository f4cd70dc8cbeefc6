"""A whole run: recipes that cannot be trained, lost ranks, and scores of the trained model."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from torch import nn

from moekit import SpecError, load
from moekit.contracts import Batch, Data, Model
from moekit.registry import current
from moekit.spec.heads import head_of
from moekit.training.run.train import evaluate, lost_rank, train

NOT_TRAINABLE = [recipe.name for recipe in current().recipes if not head_of(recipe, current()).trains]


def test_some_recipes_cannot_be_trained() -> None:
    assert {"switch-c", "shazeer2017-4096h"} <= set(NOT_TRAINABLE)


@pytest.mark.parametrize("name", NOT_TRAINABLE)
def test_a_recipe_without_data_is_rejected_before_it_is_built(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Building a model of a paper's size would fail."""

    def build(*_: object) -> None:
        raise AssertionError("something was built")

    monkeypatch.setattr("moekit.training.module.build_model", build)
    with pytest.raises(SpecError, match="a recipe without data cannot be trained") as caught:
        train(load(name), root=tmp_path)
    problem = next(problem for problem in caught.value.problems if problem.at == "data")
    assert problem.list_with == "moekit ls data"
    assert problem.notes == (f"without data it can only be read and counted: moekit params {name}",)
    assert not list(tmp_path.iterdir())


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"


@pytest.mark.parametrize("several", [True, False])
def test_a_failed_collective_is_recognised_as_a_lost_rank(several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By gloo's message or NCCL's exception class; never in a run of one process."""
    monkeypatch.setattr("moekit.training.run.train.is_distributed", lambda: several)
    assert lost_rank(RuntimeError(GLOO)) == lost_rank(dist.DistBackendError("NCCL timed out")) == several
    assert lost_rank(dist.DistStoreError("Timed out after 41 seconds waiting for clients"))  # before all have met
    assert not lost_rank(RuntimeError("shape '[2]' is invalid for input of size 3")) and not lost_rank(KeyError("w"))


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
    ("data", "line"), [(None, ""), (Silent(), ""), (Scored(), "tiny: scoring the trained model\n")]
)
def test_data_with_scores_evaluates_the_model(data: Data | None, line: str) -> None:
    out = StringIO()
    found = evaluate(data, nn.Identity(), "tiny", Console(file=out), torch.device("cpu"))  # type: ignore[arg-type]
    assert found == ({"bleu": 12.3456, "scored_pairs": 1256.0} if line else {})
    assert out.getvalue() == line


def test_a_model_is_scored_on_the_device_that_it_was_trained_on() -> None:
    places: list[str] = []

    class Placed(nn.Module):
        def to(self, device: Any) -> Placed:  # type: ignore[override]
            places.append(str(device))
            return self

    class Where(Silent):
        def scores(self, model: Model) -> dict[str, float]:
            places.append("scored")
            return {}

    evaluate(Where(), Placed(), "tiny", Console(file=StringIO()), torch.device("cuda", 1))  # type: ignore[arg-type]
    assert places == ["cuda:1", "scored", "cpu"]
