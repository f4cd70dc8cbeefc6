"""Run folders: how commands find them, and which names and paths are rejected."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from moekit import CheckpointError, MoekitError
from moekit.checkpoints.files import step_name, write_pointer
from moekit.checkpoints.writing import save_tree
from moekit.training.run.folder import RunFolder, check_run_name, check_writable, checkpoint_of

STEP = f"checkpoints/{step_name(1)}"


def run_at(path: Path) -> Path:
    folder = RunFolder(path)
    folder.create()
    folder.spec.write_text("schema: 1\n")
    return path


@pytest.mark.parametrize("name", ["metrics.csv", "checkpoints/best", f"{STEP}/state.json"])
def test_a_file_of_a_run_does_not_stand_for_its_last_checkpoint(tmp_path: Path, name: str) -> None:
    run = run_at(tmp_path / "tiny" / "2026-01-01_00-00-00")
    save_tree({}, run / STEP)
    write_pointer(run / "checkpoints", "last", step_name(1))
    (run / name).write_text("step-00000009, which does not exist, or anything else")
    for find in (RunFolder.find, checkpoint_of):
        with pytest.raises(CheckpointError, match="is a file of a run") as caught:
            find(str(run / name), tmp_path)
        assert str(caught.value).splitlines() == [
            f"{run / name} is a file of a run, but not a checkpoint",
            f"  expected the run, for its last checkpoint: {run}",
            "  or one of its checkpoints:",
            f"    {run / STEP}",
        ]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "..", "/x", "", " ", ".", "./", "a\0b"])
def test_a_name_that_leaves_the_folder_of_all_runs_is_rejected(name: str) -> None:
    with pytest.raises(MoekitError, match=r"invalid run name '.*': it names no folder inside") as caught:
        check_run_name(name)
    assert repr(name) in str(caught.value) and "expected --name NAME: such as" in str(caught.value)


def test_a_name_may_have_folders(tmp_path: Path) -> None:
    for name in ("a/b", "..a", "a..", "a b"):
        check_run_name(name)
        folder = RunFolder.claim(tmp_path, name)
        run_at(folder.path)
        assert folder.path.parent == tmp_path / name and RunFolder.find(name, tmp_path) == folder


def test_a_run_is_found_by_folder_file_and_name(tmp_path: Path) -> None:
    older, newer = run_at(tmp_path / "tiny" / "2026-01-01_00-00-00"), run_at(tmp_path / "tiny" / "2026-01-02_00-00-00")
    os.utime(older / "spec.yaml", (1, 1))
    stopped_early = run_at(tmp_path / "tiny" / "2026-01-03_00-00-00")
    for run in (older, newer):
        for step in (1, 2):
            save_tree({}, run / "checkpoints" / step_name(step))
        write_pointer(run / "checkpoints", "last", step_name(2))
        write_pointer(run / "checkpoints", "best", step_name(1))
    run_at(newer / "dense")
    assert RunFolder.find(str(older), tmp_path).path == older
    for name, step in (("last", 2), ("best", 1), (step_name(1), 1)):
        found = RunFolder.find(str(older / "checkpoints" / name), tmp_path)
        assert (found.path, found.checkpoint()) == (older, older / "checkpoints" / step_name(step))
        assert checkpoint_of(str(older / "checkpoints" / name)) == older / "checkpoints" / step_name(step)
    assert RunFolder.find(str(older / "spec.yaml")).checkpoint() == older / "checkpoints" / step_name(2)
    assert checkpoint_of("tiny", tmp_path) == newer / "checkpoints" / step_name(2)
    assert RunFolder(older).best == older / "checkpoints" / step_name(1)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*\n  a run writes its first after its first") as none:
        RunFolder(stopped_early).checkpoint()
    assert f"start again: moekit train {stopped_early / 'spec.yaml'}" in str(none.value)
    (stopped_early / "checkpoints" / "last.ckpt").write_text("pickled")
    with pytest.raises(CheckpointError, match=r"\n  last.ckpt: no run is resumed from a .ckpt file"):
        RunFolder(stopped_early).checkpoint()
    (older / "checkpoints" / "last").unlink()
    with pytest.raises(CheckpointError, match=r"'last' names none; there are:\n.*step-00000001\n.*step-00000002"):
        RunFolder(older).checkpoint()
    assert RunFolder.find("tiny", tmp_path).path == newer
    assert RunFolder.find(str(tmp_path / "tiny")).path == newer
    assert RunFolder.find(str(stopped_early)).path == stopped_early
    with pytest.raises(CheckpointError, match=r"no run at 'tony'") as caught:
        RunFolder.find("tony", tmp_path)
    assert "runs there: tiny" in str(caught.value) and "train" not in str(caught.value)


def test_an_empty_name_names_no_run_where_the_folder_holds_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a variable of the shell that is not set."""
    monkeypatch.chdir(tmp_path)
    run_at(tmp_path / "one")
    (tmp_path / "one" / "checkpoints").mkdir(exist_ok=True)
    assert RunFolder.find(".").path == Path("one")
    with pytest.raises(CheckpointError, match="no run at ''"):
        RunFolder.find("")


def test_an_untrained_recipe_is_reported_with_the_command_to_train_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no run at 'gshard'") as caught:
        RunFolder.find("gshard", tmp_path)
    assert str(caught.value).endswith("\n  runs there: none\n  train one first: moekit train gshard")
    with pytest.raises(CheckpointError, match="no run at") as caught:  # a recipe that cannot be trained
        RunFolder.find("gshard-600b", tmp_path)
    assert str(caught.value).endswith("\n  runs there: none")


def test_a_name_without_checkpoints_finds_its_latest_run(tmp_path: Path) -> None:
    run_at(tmp_path / "tiny" / "2026-01-01_00-00-00")
    later = run_at(tmp_path / "tiny" / "2026-01-02_00-00-00")
    os.utime(later / "spec.yaml", (4e9, 4e9))
    assert RunFolder.find("tiny", tmp_path).path == later


def test_a_dense_baseline_belongs_to_the_run_around_it(tmp_path: Path) -> None:
    run = RunFolder(run_at(tmp_path / "tiny" / "2026-01-01_00-00-00"))
    assert run.dense.main == run.dense_as_long.main == run and run.main == run
    alone = RunFolder(run_at(tmp_path / "dense"))
    assert alone.main == alone


def test_a_run_started_after_the_clock_was_set_back_is_still_the_latest(tmp_path: Path) -> None:
    """Whatever the times of files say."""
    early = run_at(tmp_path / "tiny" / "2999-01-01_00-00-00")
    runs = [run_at(RunFolder.claim(tmp_path, "tiny").path) for _ in range(11)]
    assert runs[-1].name == "2999-01-01_00-00-00-11"
    for folder in (early, *runs):
        os.utime(folder / "spec.yaml", (1 if folder == runs[-1] else 2, 2))
    assert RunFolder.find("tiny", tmp_path).path == runs[-1]


def test_half_written_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    folder = RunFolder(run_at(tmp_path))
    (tmp_path / ".metrics.csv.tmp").write_text("half")
    folder.create()
    assert not (tmp_path / ".metrics.csv.tmp").exists()


def test_runs_that_start_at_once_get_different_folders(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: RunFolder.claim(tmp_path, "tiny"), range(40)))
    assert len({folder.path for folder in folders}) == 40 and all(folder.path.is_dir() for folder in folders)


def test_a_released_folder_leaves_nothing_unless_something_was_written(tmp_path: Path) -> None:
    empty, used = RunFolder.claim(tmp_path, "empty"), RunFolder.claim(tmp_path, "used")
    for folder in (empty, used):
        with folder.locked():
            pass
    used.spec.write_text("schema: 1\n")
    empty.release()
    used.release()
    assert {*tmp_path.rglob("*")} == {used.path.parent, used.path, used.spec, used.path / ".lock"}


def test_a_second_process_cannot_train_in_the_folder_until_the_first_has_ended(tmp_path: Path) -> None:
    """Even if it was killed: the system removes its lock."""
    script = (
        "import sys, time; from pathlib import Path; from moekit.training.run.folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).locked(): print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == "locked\n"
        message = f"is in use: process {owner.pid} on .* is training in it\n  wait for it"
        with pytest.raises(MoekitError, match=message), RunFolder(tmp_path).locked():
            pass
        owner.kill()
    with RunFolder(tmp_path).locked():
        assert f"process {os.getpid()} on " in (tmp_path / ".lock").read_text()


def test_a_child_that_outlives_the_owner_does_not_hold_the_lock(tmp_path: Path) -> None:
    script = (
        "import os, sys, time; from pathlib import Path; from moekit.training.run.folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).locked():\n"
        "    if os.fork() == 0: print(os.getpid(), flush=True)\n"
        "    time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        owner.kill()
        owner.wait()
        try:
            with RunFolder(tmp_path).locked():
                pass
        finally:
            os.kill(child, signal.SIGKILL)  # fails if it has ended


def test_a_folder_that_cannot_be_written_is_rejected(tmp_path: Path) -> None:
    """Here because a parent is a file."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "runs" / "name"):
        with pytest.raises(
            MoekitError, match=f"cannot write a run to {path}: .*file: Not a directory\n  expected --out"
        ):
            check_writable(path)
    check_writable(tmp_path / "new" / "runs")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
