"""A checkpoint is saved whole or not at all, read as plain data, and refused when a bit of it is wrong."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import moekit
from moekit.checkpoints import files as retention
from moekit.checkpoints import writing
from moekit.checkpoints.files import Retention, last_of, recover, step_name, steps_in, target_of, write_pointer
from moekit.checkpoints.format import decode, encode
from moekit.checkpoints.reading import is_checkpoint, is_intact, open_checkpoint
from moekit.checkpoints.writing import Background, save_tree
from moekit.errors import CheckpointError, SaveError

Write = Callable[[], None]


def numbers(step: int) -> dict[str, Any]:
    return {"w": torch.full((300,), float(step)), "step": step}


def save(folder: Path, step: int, **options: Any) -> Path:
    path = folder / step_name(step)
    save_tree(numbers(step), path, step=step, retention=Retention(**options))
    return path


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.binary(max_size=4),
    st.lists(st.integers(0, 3), max_size=3).map(lambda shape: torch.rand(shape)),
    st.integers(-5, 5).map(torch.tensor),
)  # fmt: skip
KEYS = st.one_of(
    st.text(max_size=3), st.integers(0, 9), st.sampled_from(["$tensor", "$pairs", "a.b", "a"]), st.booleans()
)
TREES = st.recursive(
    LEAVES,
    lambda t: st.one_of(
        st.lists(t, max_size=3), st.lists(t, max_size=3).map(tuple), st.dictionaries(KEYS, t, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=120, deadline=None)
@given(TREES)
def test_a_tree_comes_back_as_it_was(tmp_path_factory: Any, tree: Any) -> None:
    path = tmp_path_factory.mktemp("tree") / "c"
    save_tree(tree, path)
    assert equal(open_checkpoint(path).whole(), tree)


def test_tensors_are_named_by_their_path_and_tied_ones_are_written_once(tmp_path: Path) -> None:
    w = torch.randn(3, 4)
    tree = {"model": {"a.w": w, "tied": w, "t": w.t(), "row": w[1]}, "list": [torch.zeros(2)], "model.a": {"w": w * 2}}
    found = encode(tree)
    assert list(found.boxes) == ["model.a.w", "model.t", "model.row", "list.0", "model.a.w#2"]
    assert equal(decode(json.loads(json.dumps(found.plain)), lambda name: found.boxes[name].tensor), tree)
    save_tree(tree, tmp_path / "c")
    assert equal(open_checkpoint(tmp_path / "c").whole(), tree)


def test_what_is_no_plain_value_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot save a pathlib.*Path at callbacks\.mine\.0") as caught:
        save_tree({"callbacks": {"mine": [Path("x")]}}, tmp_path / "c")
    assert "expected plain values" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CheckpointError, match="'\\$new' is no part of this format"):
        decode({"$new": 1}, str)


def test_what_lies_in_a_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    assert {p.name for p in path.iterdir()} == {"tensors-00001-of-00001.safetensors", "state.json", "manifest.json"}
    assert {p.name for p in tmp_path.iterdir()} == {"step-00000003", "last"}
    assert (tmp_path / "last").read_text() == "step-00000003\n"
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["format"], manifest["moekit"], manifest["step"]) == (1, moekit.__version__, 3)
    checkpoint = open_checkpoint(tmp_path / "last")
    assert checkpoint.path == path and checkpoint.manifest.step == 3 and checkpoint.plain["step"] == 3
    handle = checkpoint.plain["w"]
    assert (handle.shape, handle.dtype) == (torch.Size([300]), torch.float32)
    assert handle.read((7,), (2,)).tolist() == [3.0, 3.0]
    checkpoint.verify()
    assert is_checkpoint(path) and is_checkpoint(tmp_path / "last") and not is_checkpoint(tmp_path)


# ---- damage --------------------------------------------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path: Path, at: int) -> None:
    path.write_bytes(path.read_bytes()[:at])


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a bit of a tensor": ("tensors-00001-of-00001.safetensors", lambda p: flip(p, -5), "its sha256 is not"),
    "a bit of a header": ("tensors-00001-of-00001.safetensors", lambda p: flip(p, 20), "its sha256 is not"),
    "the end of the tensors": ("tensors-00001-of-00001.safetensors", lambda p: cut(p, 900), "it has 900 bytes,"),
    "the tensors": ("tensors-00001-of-00001.safetensors", Path.unlink, "is missing, and the manifest"),
    "a bit of the values": ("state.json", lambda p: flip(p, 30), "its sha256 is not"),
    "the values": ("state.json", Path.unlink, "is missing, and the manifest"),
    "the manifest": ("manifest.json", Path.unlink, "is missing or unreadable: No such file"),
    "a bit of the manifest": ("manifest.json", lambda p: flip(p, -40), "is damaged"),
    "the end of the manifest": ("manifest.json", lambda p: cut(p, 50), "is damaged"),
    "another format": (
        "manifest.json", lambda p: p.write_text(p.read_text().replace('"format": 1', '"format": 9')), "format 9, wri"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_refused_with_the_files_name_and_whole_ones_are_named(what: str, tmp_path: Path) -> None:
    name, damage, words = DAMAGES[what]
    first, second, last = (save(tmp_path, step, keep=3) for step in (1, 2, 3))
    flip(second / "tensors-00001-of-00001.safetensors", -1)
    damage(last / name)
    assert not is_intact(last)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(last).whole()
    message = str(caught.value)
    assert message.startswith(str(last / name)) and words in message
    assert message.endswith(f"  whole ones beside it, to be named in place of the run:\n    {first}")
    with pytest.raises(CheckpointError, match=name):
        open_checkpoint(last).verify()
    flip(first / "state.json", 3)
    with pytest.raises(CheckpointError, match="no other checkpoint beside it is whole"):
        open_checkpoint(last).whole()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_one_bit_is_noticed(tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("bit")
    save_tree({"w": torch.arange(6.0), "n": [1, 2.5]}, folder / "c", step=1)
    path = data.draw(st.sampled_from(sorted((folder / "c").iterdir())))
    at, bit = data.draw(st.integers(0, path.stat().st_size - 1)), data.draw(st.integers(0, 7))
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1 << bit
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=path.name):
        open_checkpoint(folder / "c").verify()


def test_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*step-00000001\n  a run writes its first after"):
        open_checkpoint(tmp_path / "step-00000001")
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        open_checkpoint(tmp_path)


# ---- nothing is unpickled --------------------------------------------------------------------------------------------


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def test_a_planted_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    """In place of any file, with a manifest that says it belongs there."""
    mark = tmp_path / "ran"
    torch.save({"state_dict": Evil(mark)}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match=r"files of torch\.save are not read: they may hold code"):
        open_checkpoint(tmp_path / "evil.ckpt")
    for payload in ((tmp_path / "evil.ckpt").read_bytes(), pickle.dumps(Evil(mark))):
        for name in ("tensors-00001-of-00001.safetensors", "state.json", "manifest.json"):
            path = save(tmp_path, 1)
            (path / name).write_bytes(payload)
            if name != "manifest.json":
                old = moekit.checkpoints.format.Manifest.read(path)  # type: ignore[attr-defined]
                digest = moekit.checkpoints.safetensors_file.digest_of(path / name)  # type: ignore[attr-defined]
                type(old)(1, {**old.files, name: digest}).write(path)
            with pytest.raises(CheckpointError, match=name):
                open_checkpoint(path).whole()
    assert not mark.exists()


def test_neither_saving_nor_reading_touches_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("pickle was used")

    for module, names in (
        (pickle, ("Unpickler", "Pickler", "load", "loads", "dump", "dumps")),
        (torch, ("load", "save")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    path = save(tmp_path, 1)
    assert torch.equal(open_checkpoint(path).whole()["w"], numbers(1)["w"])
    with pytest.raises(AssertionError, match="pickle was used"):
        torch.load(path)


# ---- failures and kills ----------------------------------------------------------------------------------------------

STAGES = ("write", "settle", "seal", "publish", "point")


def full(*args: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("background", [False, True], ids=["at once", "in the background"])
@pytest.mark.parametrize("stage", ["write_tensors", "write_file", "sync_directory", "seal", "publish", "point"])
def test_a_full_disk_leaves_the_last_good_one(
    stage: str, background: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = save(tmp_path, 1)
    background = Background() if background else None

    def attempt() -> None:
        save_tree(numbers(2), tmp_path / step_name(2), step=2, retention=Retention(best=True), background=background)
        if background is not None:
            background.wait()

    with monkeypatch.context() as patch:
        patch.setattr(writing, stage, full)
        with pytest.raises(SaveError) as caught:
            attempt()
    assert str(caught.value) == (
        f"could not save the checkpoint {tmp_path / 'step-00000002'}: No space left on device\n"
        f"  the last good one is untouched: {first}"
    )
    assert {p.name for p in tmp_path.iterdir()} == {"step-00000001", "last"}
    assert is_intact(first) and last_of(tmp_path) == first
    attempt()  # the disk has room again
    assert last_of(tmp_path) == target_of(tmp_path, "best") == tmp_path / "step-00000002"


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A file may not grow beyond a limit: the system's own refusal, in the middle of a tensor."""
    code = f"""
import resource, signal, sys
from pathlib import Path
import torch
from moekit.checkpoints.files import Retention
from moekit.checkpoints.writing import save_tree
from moekit.errors import SaveError
folder = Path({str(tmp_path)!r})
save_tree({{"w": torch.zeros(100)}}, folder / "step-00000001", retention=Retention())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_tree({{"w": torch.zeros(100_000)}}, folder / "step-00000002", retention=Retention())
except SaveError as error:
    print(str(error).splitlines()[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"could not save the checkpoint {tmp_path / 'step-00000002'}: File too large"
    assert {p.name for p in tmp_path.iterdir()} == {"step-00000001", "last"}
    assert is_intact(tmp_path / "step-00000001")


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from moekit.checkpoints import writing
from moekit.checkpoints import files as keeping
from moekit.checkpoints.files import Retention
from moekit.checkpoints.writing import save_tree

def save(folder, step):
    save_tree({"w": torch.full((300,), float(step)), "step": step}, folder / f"step-{step:08d}", step=step,
              retention=Retention(best=True, keep=1))

for name in sys.argv[2:]:
    folder, (stage, when) = Path(sys.argv[1]) / name, name.split("-")
    save(folder, 1)
    room = keeping if hasattr(keeping, stage) else writing
    real = getattr(room, stage)
    def dying(*args, **options):
        if when == "after":
            real(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    child = os.fork()
    if not child:
        setattr(room, stage, dying)
        setattr(writing, stage, dying)
        save(folder, 2)
        os._exit(0)
    print(os.waitpid(child, 0)[1])
"""


def test_killed_at_any_stage_a_run_goes_on_from_a_whole_checkpoint(tmp_path: Path) -> None:
    stages = (*STAGES, "prune", "write_pointer")
    names = [*(f"{stage}-{when}" for stage in stages for when in ("before", "after")), "sync_directory-before"]
    command = [sys.executable, "-c", KILLED, str(tmp_path), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(int(signal.SIGKILL))] * len(names)
    for name in names:
        folder, there = tmp_path / name, name in {"point-after", "prune-before", "prune-after", "write_pointer-after"}
        last = last_of(folder)
        assert last == folder / ("step-00000002" if there else "step-00000001"), name
        assert is_intact(last), name
        recover(folder)
        best = target_of(folder, "best")
        assert best is not None and is_intact(best), name
        left = {"step-00000001"} if name in {"prune-before", "point-after"} else set()
        assert {p.name for p in folder.iterdir()} == {"last", "best", last.name, best.name} | left, name
        save(folder, 3, best=True)
        assert {p.name for p in folder.iterdir()} == {"last", "best", "step-00000003"}, name


# ---- keeping ---------------------------------------------------------------------------------------------------------


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    for step, best in ((1, True), (2, True), (3, False), (4, False), (5, False)):
        save(tmp_path, step, best=best, keep=2)
    assert list(steps_in(tmp_path)) == [2, 4, 5]
    assert (last_of(tmp_path), target_of(tmp_path, "best")) == (tmp_path / step_name(5), tmp_path / step_name(2))
    save(tmp_path, 3, keep=2)  # a run that went back: what came after is of no run any more
    assert list(steps_in(tmp_path)) == [2, 3]
    save(tmp_path, 10**8, keep=1)
    assert list(steps_in(tmp_path)) == [2, 10**8]


def test_recovery_leaves_alone_what_may_be_all_there_is(tmp_path: Path) -> None:
    recover(tmp_path / "none")
    save(tmp_path, 1)
    save(tmp_path, 2, keep=5)
    (tmp_path / "last").unlink()
    (tmp_path / ".tmp-new-step-00000003").mkdir()
    (tmp_path / "mine").mkdir()
    recover(tmp_path)
    assert list(steps_in(tmp_path)) == [1, 2] and (tmp_path / "mine").is_dir()
    assert not (tmp_path / ".tmp-new-step-00000003").exists()
    write_pointer(tmp_path, "last", step_name(1))
    recover(tmp_path, resumed_from=tmp_path / step_name(2))
    assert list(steps_in(tmp_path)) == [1, 2]
    recover(tmp_path)
    assert list(steps_in(tmp_path)) == [1]


@pytest.mark.parametrize("text", ["", "step-00000009\n", "../step-00000001\n", "/etc\n", "\xff", "x" * 500])
def test_a_pointer_that_names_nothing_is_none(text: str, tmp_path: Path) -> None:
    save(tmp_path / "checkpoints", 1)
    save(tmp_path, 1)
    (tmp_path / "checkpoints" / "last").write_text(text, encoding="latin-1")
    assert last_of(tmp_path / "checkpoints") is None


def test_saving_over_a_checkpoint_replaces_it(tmp_path: Path) -> None:
    for step in (1, 2):
        save_tree(numbers(step), tmp_path / "c")
    assert open_checkpoint(tmp_path / "c").plain["step"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_failed_removal_is_told_unless_nobody_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").mkdir()

    def fail(*args: Any) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "rename", fail)
    retention.remove(tmp_path / "x", strict=False)
    with pytest.raises(OSError, match="no"):
        retention.remove(tmp_path / "x")


# ---- in the background -----------------------------------------------------------------------------------------------


def test_what_is_saved_is_what_there_was_when_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, real = threading.Event(), writing.write

    def late(save: writing.Save) -> Any:
        assert gate.wait(60)
        return real(save)

    monkeypatch.setattr(writing, "write", late)
    background, tree = Background(), {"w": torch.arange(5.0), "list": [1]}
    save_tree(tree, tmp_path / "step-00000001", retention=Retention(), background=background)
    tree["w"].add_(1)  # training goes on
    tree["list"].append(2)
    assert last_of(tmp_path) is None
    (thread,) = (each for each in threading.enumerate() if each.name == "checkpoint")
    assert not thread.daemon  # a process that ends in good order lets it finish
    gate.set()
    background.wait()
    saved = open_checkpoint(tmp_path / "last").whole()
    assert saved["list"] == [1] and torch.equal(saved["w"], torch.arange(5.0))


def test_one_is_under_way_at_most_and_errors_come_to_light(tmp_path: Path) -> None:
    background, running, most = Background(), [0], [0]

    def work() -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        threading.Event().wait(0.01)
        running[0] -= 1

    for _ in range(5):
        background.start(work)
    background.wait()
    assert (running[0], most[0]) == (0, 1)

    def fail() -> None:
        raise SaveError("full")

    background.start(fail)
    with pytest.raises(SaveError, match="full"):
        save_tree(numbers(1), tmp_path / "c", background=background)

    def leave() -> None:
        raise SystemExit("whatever it is")

    background.start(leave)
    with pytest.raises(SystemExit, match="whatever it is"):
        background.wait()
    save_tree(numbers(1), tmp_path / "c", background=background)
    background.wait()
    background.wait()
    assert math.isclose(float(open_checkpoint(tmp_path / "c").plain["w"].whole().mean()), 1.0)
