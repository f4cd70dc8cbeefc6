"""What cannot be trained is refused before anything is built: at the size of a paper, building alone would fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from moekit.errors import SpecError
from moekit.registry import current
from moekit.spec import load
from moekit.training.run.train import train

COUNTED = [component.name for component in current().components("recipe") if not component.trains]


def test_there_are_recipes_to_count() -> None:
    assert {"switch-c", "shazeer2017-4096h"} <= set(COUNTED)


@pytest.mark.parametrize("name", COUNTED)
def test_a_recipe_to_count_is_not_built(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object) -> None:
        raise AssertionError("something was built")

    monkeypatch.setattr("moekit.training.module.build_model", build)
    with pytest.raises(SpecError, match="a recipe without data cannot be trained") as caught:
        train(load(name), root=tmp_path)
    problem = next(problem for problem in caught.value.problems if problem.at == "data")
    assert problem.list_with == "moekit ls data"
    assert problem.notes == (f"without data it is there to be read and counted: moekit params {name}",)
    assert not list(tmp_path.iterdir())
