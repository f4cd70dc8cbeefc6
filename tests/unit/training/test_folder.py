"""Which folder a command means, and what is no folder of a run; found by name: ``test_run_parts``."""

from __future__ import annotations

from pathlib import Path

import pytest

from moekit import CheckpointError, MoekitError
from moekit.checkpoints.files import step_name, write_pointer
from moekit.checkpoints.writing import save_tree
from moekit.training.run.folder import RunFolder, check_run_name, checkpoint_of

STEP = f"checkpoints/{step_name(1)}"


def made(folder: RunFolder) -> Path:
    folder.create()
    folder.spec.write_text("schema: 1\n")
    return folder.path


@pytest.mark.parametrize("name", ["metrics.csv", "checkpoints/last.ckpt", "checkpoints/best", f"{STEP}/state.json"])
def test_a_file_of_a_run_is_not_taken_for_its_last_checkpoint(tmp_path: Path, name: str) -> None:
    run = made(RunFolder(tmp_path / "tiny" / "2026-01-01_00-00-00"))
    save_tree({}, run / STEP)
    write_pointer(run / "checkpoints", "last", step_name(1))
    (run / name).write_text("step-00000009, which is gone, or whatever else")
    for find in (RunFolder.find, checkpoint_of):
        with pytest.raises(CheckpointError) as caught:
            find(str(run / name), tmp_path)
        assert str(caught.value).splitlines() == [
            f"{run / name} is a file of a run, and no checkpoint",
            f"  expected the run, meaning its last checkpoint: {run}",
            "  or one of its checkpoints:",
            f"    {run / STEP}",
        ]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "..", "/x", "", " ", ".", "./"])
def test_a_run_stays_inside_the_folder_of_all_runs(name: str) -> None:
    with pytest.raises(MoekitError, match=r"a run cannot be called '.*': that is no folder inside") as caught:
        check_run_name(name)
    assert f"'{name}'" in str(caught.value) and "expected --name NAME: such as" in str(caught.value)


def test_a_name_may_have_folders(tmp_path: Path) -> None:
    for name in ("a/b", "..a", "a..", "a b"):
        check_run_name(name)
        folder = RunFolder.new(tmp_path, name)
        made(folder)
        assert folder.path.parent == tmp_path / name and RunFolder.find(name, tmp_path) == folder
