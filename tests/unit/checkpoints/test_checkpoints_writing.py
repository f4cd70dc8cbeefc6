"""A checkpoint is saved completely or not at all: who writes what, full disks, kills, the background."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from checkpoint_cases import SimulatedRanks, exchanged, numbers, save

from moekit.checkpoints import files, writing
from moekit.checkpoints.files import Retention, last_of, recover, step_name, step_of, target_of
from moekit.checkpoints.reading import is_intact, open_checkpoint
from moekit.checkpoints.writing import (
    SMALL,
    STAGING,
    Background,
    Ranks,
    assign_shards,
    copy_through,
    file_of,
    save_tree,
)
from moekit.compat import timeout_of
from moekit.distributed import host_group
from moekit.errors import CheckpointError, SaveError
from moekit.shards import TensorShard, local_shard

# ---- who writes what -------------------------------------------------------------------------------------------------


def test_a_shard_of_several_ranks_is_written_once_and_the_work_is_shared() -> None:
    """Four ranks, two of which hold the same rows: each writes a fourth of all elements."""
    half = SMALL + 2
    trees = [{n: TensorShard(n, (4, half), (r // 2 * 2, 0), torch.zeros(2, half)) for n in "abcd"} for r in range(4)]
    ranks = exchanged(trees, frozenset("abcd"))
    plans = [assign_shards(tree, frozenset("abcd"), each) for tree, each in zip(trees, ranks, strict=True)]
    assert all(table == plans[0][0] for table, _ in plans)
    assert [sum(shard.tensor.numel() for shard in to_write.values()) for _, to_write in plans] == [4 * half] * 4
    parts = [part for entry in plans[0][0].values() for part in entry["parts"]]
    assert len(parts) == 8 and {part["file"] for part in parts} == {file_of(rank, 4) for rank in range(4)}


def test_work_is_shared_by_elements_and_rank_0_writes_what_is_not_sharded() -> None:
    """Of one large tensor and three small ones, which both ranks hold, one writes the large, the other the small."""
    sizes = {"large": 6, "a": 2, "b": 2, "c": 1, "own": 1}
    tree = {name: local_shard(name, torch.zeros(1).expand(n << 20)) for name, n in sizes.items()}  # above SMALL
    sharded = frozenset(sizes) - {"own"}
    ranks = exchanged([tree, tree], sharded)
    assert ranks[0].received is not None
    assert [entries.keys() for entries in ranks[0].received] == [sizes.keys(), sharded]
    plans = [assign_shards(tree, sharded, each) for each in ranks]
    assert [list(to_write) for _, to_write in plans] == [["large", "own"], ["a", "b", "c"]]


def test_shards_that_are_not_of_one_tensor_are_rejected() -> None:
    tree, sharded = {"w": TensorShard("w", (4,), (0,), torch.zeros(2))}, frozenset("w")
    sent = [{"w": (dtype, (4,), (2 * r,), (2,))} for r, dtype in enumerate(("F32", "F64"))]
    with pytest.raises(CheckpointError, match="cannot save w: its dtype or shape differs between ranks"):
        assign_shards(tree, sharded, SimulatedRanks(0, 2, sent))
    with pytest.raises(CheckpointError, match=r"cannot save w \[4\]: the shards hold 2 of 4 elements"):
        assign_shards(tree, sharded, SimulatedRanks(0, 1))
    with pytest.raises(CheckpointError, match=r"cannot save w: safetensors does not support torch\.complex128"):
        assign_shards(
            {"w": local_shard("w", torch.zeros(2, dtype=torch.complex128))}, frozenset(), SimulatedRanks(0, 1)
        )


@contextmanager
def process_group(store: Path, timeout: timedelta) -> Iterator[None]:
    """A process group of this process alone, which gloo creates without a network."""
    dist.init_process_group("gloo", store=dist.FileStore(str(store), 1), rank=0, world_size=1, timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_ranks_talk_over_one_cached_group_with_the_timeout_of_the_run(tmp_path: Path) -> None:
    """torch's own timeout, half an hour, would exceed ``trainer.strategy.timeout``; and groups are expensive."""
    text = "naïve 木 \N{SLIGHTLY SMILING FACE}"
    assert Ranks(host_group("checkpoints")).group is None and Ranks().all_gather("") == [""]
    for seconds in (77, 78):  # a later process group has another one
        with process_group(tmp_path / str(seconds), timedelta(seconds=seconds)):
            ranks = Ranks(host_group("checkpoints"))
            assert ranks.group is not None and ranks.group is host_group("checkpoints") is not dist.group.WORLD
            assert timeout_of(ranks.group) == timedelta(seconds=seconds)
            assert (ranks.rank, ranks.world) == (0, 1)
            assert ranks.all_gather(text) == [text] and ranks.all_gather("") == [""]


# ---- the order of what reaches the disk ------------------------------------------------------------------------------


def test_nothing_is_named_before_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut keeps what was flushed, and may keep any of the rest: also a name without its file."""
    folder = tmp_path.stat().st_ino
    on_disk, named, sync = {folder}, [], os.fsync

    def fsync(handle: int) -> None:
        sync(handle)
        on_disk.add(os.fstat(handle).st_ino)

    def moving(real: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        def move(old: Path, new: Path) -> None:
            missing = [p.name for p in (old, *old.glob("*")) if p.stat().st_ino not in on_disk]
            assert not missing, f"{new.name} would name {missing}"
            assert folder in on_disk, f"{new.name} precedes what it follows"
            real(old, new)
            named.append(new.name)
            on_disk.remove(folder)  # until it is flushed again

        return move

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, moving(getattr(os, name)))
    for step in (1, 2):
        save(tmp_path, step, best=True, keep=9)
        assert named[-3:] == [step_name(step), "last", "best"] and folder in on_disk
    assert len(named) == 6


# ---- failures and kills ----------------------------------------------------------------------------------------------


def full(*args: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("in_background", [False, True], ids=["at once", "in the background"])
@pytest.mark.parametrize("stage", ["write_tensors", "write_file", "sync_directory", "seal", "publish", "point"])
def test_a_full_disk_leaves_the_last_good_checkpoint(
    stage: str, in_background: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = save(tmp_path, 1)
    background = Background() if in_background else None

    def attempt() -> None:
        save_tree(numbers(2), tmp_path / step_name(2), step=2, retention=Retention(best=True), background=background)
        if background is not None:
            background.wait()

    message = (
        f"could not save the checkpoint {tmp_path / 'step-00000002'}: No space left on device\n"
        f"  the last intact one is untouched: {first}"
    )
    with monkeypatch.context() as patch:
        patch.setattr(Retention if stage == "point" else writing, stage, full)
        with pytest.raises(SaveError, match=f"^{message}$"):
            attempt()
    assert {p.name for p in tmp_path.iterdir()} == {"step-00000001", "last"}
    assert is_intact(first) and last_of(tmp_path) == first
    attempt()  # the disk has space again
    assert last_of(tmp_path) == target_of(tmp_path, "best") == tmp_path / "step-00000002"


def test_a_failure_between_the_pointers_keeps_both_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full after ``last`` was set to the new one."""
    save(tmp_path, 1, best=True)
    real = files.write_pointer

    def full_at_best(folder: Path, name: str, target: str) -> None:
        if name == "best":
            full()
        real(folder, name, target)

    monkeypatch.setattr(files, "write_pointer", full_at_best)
    with pytest.raises(SaveError, match="No space left on device"):
        save(tmp_path, 2, best=True)
    last, best = last_of(tmp_path), target_of(tmp_path, "best")
    assert last == tmp_path / step_name(2) and best == tmp_path / step_name(1)
    assert is_intact(last) and is_intact(best)


def test_the_systems_own_error_in_the_middle_of_a_tensor_leaves_nothing(tmp_path: Path) -> None:
    """In a process that may not write files beyond a size."""
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
from moekit.checkpoints import files, writing
from moekit.checkpoints.files import Retention

def save(folder, step):
    writing.save_tree({"w": torch.full((300,), float(step)), "step": step}, folder / f"step-{step:08d}", step=step,
                      retention=Retention(best=True, keep=1))

for name in sys.argv[2:]:
    folder, (stage, when) = Path(sys.argv[1]) / name, name.split("-")
    save(folder, 1)
    owners = [each for each in (Retention, files, writing) if hasattr(each, stage)]
    real = getattr(owners[0], stage)
    def killed(*args, **options):
        if when == "after":
            real(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    child = os.fork()
    if not child:
        for owner in owners:
            setattr(owner, stage, killed)
        save(folder, 2)
        os._exit(0)
    print(os.waitpid(child, 0)[1])
"""


def test_after_a_kill_at_any_stage_last_is_an_intact_checkpoint(tmp_path: Path) -> None:
    stages = ("write", "exchange", "seal", "publish", "point", "prune", "write_pointer")
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
        left |= {"step-00000002"} if name in {"publish-after", "point-before", "write_pointer-before"} else set()
        assert {p.name for p in folder.iterdir()} == {"last", "best", last.name, best.name} | left, name
        save(folder, 3, best=True, after=step_of(last))
        assert {p.name for p in folder.iterdir()} == {"last", "best", "step-00000003"}, name


def test_saving_over_a_checkpoint_replaces_it(tmp_path: Path) -> None:
    for step in (1, 2):
        save_tree(numbers(step), tmp_path / "c")
    assert open_checkpoint(tmp_path / "c").plain["step"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_tree_that_cannot_be_saved_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot save a pathlib"):
        save_tree({"x": Path("x")}, tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


# ---- in the background -----------------------------------------------------------------------------------------------


def test_the_background_saves_the_values_at_the_time_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, real = threading.Event(), writing.write

    def delayed(save: writing.Save) -> Any:
        assert gate.wait(60)
        return real(save)

    monkeypatch.setattr(writing, "write", delayed)
    background, tree = Background(), {"w": torch.arange(5.0), "list": [1]}
    earlier = set(threading.enumerate())
    save_tree(tree, tmp_path / "step-00000001", retention=Retention(), background=background)
    tree["w"].add_(1)  # training continues
    tree["list"].append(2)
    assert last_of(tmp_path) is None
    (thread,) = (each for each in set(threading.enumerate()) - earlier if each.name.startswith("checkpoint"))
    assert not thread.daemon  # a process that exits normally waits for it
    gate.set()
    background.wait()
    saved = open_checkpoint(tmp_path / "last").whole()
    assert saved["list"] == [1] and torch.equal(saved["w"], torch.arange(5.0))


def test_one_job_runs_at_a_time(tmp_path: Path) -> None:
    background, running, most = Background(), [0], [0]

    def job() -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        threading.Event().wait(0.01)
        running[0] -= 1

    for _ in range(5):
        background.start(job)
    background.wait()
    assert (running[0], most[0]) == (0, 1)


@pytest.mark.parametrize("error", [SaveError("full"), SystemExit("full")], ids=["a failed save", "any other"])
def test_an_error_in_the_background_is_raised_once_by_the_next_save(error: BaseException, tmp_path: Path) -> None:
    background = Background()

    def fail() -> None:
        raise error

    background.start(fail)
    with pytest.raises(type(error), match="full"):
        save_tree(numbers(1), tmp_path / "c", background=background)
    save_tree(numbers(1), tmp_path / "c", background=background)
    background.wait()
    background.wait()
    assert open_checkpoint(tmp_path / "c").whole()["w"].mean() == 1.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7, 5), (64,), (3, 0, 2)])
def test_a_copy_through_a_small_buffer_is_exact_and_its_own(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor, staging = (torch.randn(shape) * 9).to(dtype), torch.empty(16, dtype=torch.uint8)
    for given in (tensor, tensor.mT if tensor.ndim == 2 else tensor):
        copy = copy_through(staging, given)
        assert copy.dtype == dtype and copy.is_contiguous() and torch.equal(copy, given)
        assert not given.numel() or copy.data_ptr() != given.data_ptr()


def test_the_staging_buffer_is_a_power_of_two() -> None:
    """torch rounds pinned memory up to one."""
    assert STAGING.bit_count() == 1
