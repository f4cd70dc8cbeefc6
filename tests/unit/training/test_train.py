"""A whole run: recipes that cannot be trained, and lost ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist

from moekit import SpecError, load
from moekit.registry import current
from moekit.spec.layers import head_of
from moekit.training.run.train import lost_rank, train

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
