"""Only regular files are read; replacing one is atomic: a failed or killed write leaves the old file."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from moekit import files
from moekit.files import make_directory, open_regular, read_regular, replace_file


def test_a_file_that_could_block_or_never_end_is_not_opened(tmp_path: Path) -> None:
    """A FIFO without a writer, a device without an end, a directory, a socket, and a link to one of them."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path / "link", Path("/dev/zero")):
        with pytest.raises(OSError, match="Not a regular file"):
            open_regular(path)
    with pytest.raises(OSError, match="Is a directory"):
        read_regular(tmp_path, 1)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError, match="No such device or address"):
            read_regular(tmp_path / "socket", 1)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"four")
    assert read_regular(tmp_path / "file", 4) == b"four"
    assert read_regular(tmp_path / "file", 1 << 62) == b"four"  # without as much memory
    with pytest.raises(OSError, match="It has 4 bytes, more than 3"):
        read_regular(tmp_path / "file", 3)


def test_new_directories_are_flushed_in_their_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr("moekit.files.sync_directory", flushed.append)
    make_directory(tmp_path / "a" / "b")
    make_directory(tmp_path / "a" / "b")
    assert flushed == [tmp_path, tmp_path / "a"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    replace_file(path, lambda p: p.write_text("old"))

    def fail(p: Path) -> None:
        p.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    code = f"""
import os, signal
from pathlib import Path
from moekit.files import replace_file
replace_file(Path({str(path)!r}), lambda p: p.write_text("old"))
def die(p):
    p.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
replace_file(Path({str(path)!r}), die)
"""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    replace_file(path, lambda p: p.write_text("new"))  # what the killed process left behind does no harm
    assert path.read_text() == "new"


def test_on_windows_no_directory_is_opened_and_only_writable_files_are_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Windows refuses is refused here: to open a directory, and to flush a file that is open to be read."""
    opened, flushed = os.open, os.fsync

    def refuse_directories(path: str, *rest: int) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opened(path, *rest)

    def refuse_readers(handle: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flushed(handle)

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(os, "open", refuse_directories)
    monkeypatch.setattr(os, "fsync", refuse_readers)
    with pytest.raises(PermissionError, match="Permission denied"):
        replace_file(tmp_path / "a" / "file", lambda path: path.write_bytes(b"new"))
    monkeypatch.setattr(files, "WINDOWS", True)
    replace_file(tmp_path / "b" / "file", lambda path: path.write_bytes(b"new"))
    assert (tmp_path / "b" / "file").read_bytes() == b"new"


def test_macos_flushes_past_the_cache_of_the_drive_and_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def full(handle: int, command: int) -> None:
        asked.append(f"full {command}")
        if len(asked) > 1:
            raise OSError(errno.ENOTSUP, "not on this file system")

    monkeypatch.setattr(files, "FULL_FLUSH", 51)
    monkeypatch.setattr(files, "fcntl", SimpleNamespace(fcntl=full))
    monkeypatch.setattr(os, "fsync", lambda handle: asked.append("fsync"))
    replace_file(tmp_path / "file", lambda path: path.write_bytes(b"new"))
    assert asked == ["full 51", "full 51", "fsync"]  # the file; then its directory


@pytest.mark.parametrize(("code", "raised"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_that_cannot_flush_directories_is_used_without_and_a_failing_disk_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, raised: bool
) -> None:
    def fail(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    if raised:
        with pytest.raises(OSError, match="Input/output error"):
            files.sync_directory(tmp_path)
    else:
        files.sync_directory(tmp_path)
