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
from moekit.spec.recipe import Recipe, Start
from moekit.training.build import build_model
from moekit.training.run.imported import imported_files, write_run

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


def run_at(path: Path, start: str, *, imported: bool = False) -> Path:
    """The checkpoint of a run that says what it started from."""
    (path / "checkpoints" / "step-0").mkdir(parents=True)
    (path / "spec.yaml").write_text(f"start: {{run: '{start}'}}\n" if start else "seed: 1\n")
    if imported:
        (path / "imported").mkdir()
        (path / "imported" / "config.json").write_text("{}")
    return path / "checkpoints" / "step-0"


def test_imported_files_are_found_through_the_runs_that_a_run_started_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from a folder other than that in which the runs were trained."""
    first = run_at(tmp_path / "runs" / "imported", str(tmp_path / "runs" / "imported"), imported=True)
    second = run_at(tmp_path / "runs" / "tuned" / "a", str(first))
    third = run_at(tmp_path / "runs" / "again" / "b", "runs/tuned/a/checkpoints/step-0")
    expected = [tmp_path / "runs" / "imported" / "imported" / "config.json"]
    assert imported_files(first, Start(run=str(first))) == imported_files(second, Start(run=str(first))) == expected
    for folder in (tmp_path, tmp_path / "runs"):
        monkeypatch.chdir(folder)
        assert imported_files(third, Start(run="runs/tuned/a/checkpoints/step-0")) == expected
    assert imported_files(tmp_path / "alone.ckpt", Start(run=str(second))) == expected


def test_without_imported_files_there_are_none(tmp_path: Path) -> None:
    """Also where a run is gone, or starts from itself."""
    circle = run_at(tmp_path / "circle", str(tmp_path / "circle"))
    starts = (Start(run=str(tmp_path / "circle")), Start(run="gone"), None)
    assert [imported_files(circle, start) for start in starts] == [(), (), ()]
    assert imported_files(run_at(tmp_path / "fresh", ""), None) == ()
