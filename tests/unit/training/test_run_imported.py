"""Runs of models that were not trained here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

from moekit import MoekitError
from moekit.errors import CheckpointError, SaveError
from moekit.params import build_on_meta
from moekit.run import open as open_run
from moekit.spec import load
from moekit.spec.recipe import Recipe
from moekit.training.build import build_model
from moekit.training.run.imported import write_run

SPEC = {"extends": "jacobs1991", "seed": 3, "start": None}


def parts() -> tuple[Recipe, dict[str, Tensor], dict[str, Tensor]]:
    recipe = load(SPEC)
    return recipe, build_on_meta(recipe.model).state_dict(), build_model(recipe).state_dict()


def test_a_written_run_opens_with_its_weights_and_files(tmp_path: Path) -> None:
    recipe, meta, weights = parts()
    (tmp_path / "note.txt").write_text("kept")
    write_run(tmp_path / "run", recipe, meta, lambda name: [weights[name]], {}, [tmp_path / "note.txt"])
    assert (tmp_path / "run/imported/note.txt").read_text() == "kept"
    found = open_run(tmp_path / "run").model.state_dict()
    assert all(found[name].equal(weights[name]) for name in weights)


def test_of_a_run_that_cannot_be_written_nothing_stays(tmp_path: Path) -> None:
    recipe, meta, weights = parts()

    def broken(name: str) -> Iterator[Tensor]:
        raise CheckpointError("no such tensor")
        yield weights[name]

    with pytest.raises(SaveError, match="no such tensor"):
        write_run(tmp_path / "run", recipe, meta, broken, {})
    assert not (tmp_path / "run").exists()
    with pytest.raises(FileNotFoundError, match="missing"):
        write_run(tmp_path / "run", recipe, meta, lambda name: [weights[name]], {}, [tmp_path / "missing"])
    assert not (tmp_path / "run").exists()


def test_a_folder_with_something_in_it_is_not_written_to(tmp_path: Path) -> None:
    recipe, meta, weights = parts()
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(MoekitError, match="exists already"):
        write_run(tmp_path, recipe, meta, lambda name: [weights[name]], {})
    assert (tmp_path / "mine.txt").read_text() == "mine"
