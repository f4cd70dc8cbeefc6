"""Files: only regular ones are read, up to a size; a write replaces the whole file and reaches the disk. Torch-free."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Final

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FULL_FLUSH: Final[int] = getattr(fcntl, "F_FULLFSYNC", 0)
"""A command of macOS, where fsync leaves data in the drive's cache; 0 elsewhere."""

WINDOWS: Final = os.name == "nt"
"""Windows opens no directory, and flushes a renamed file's entry itself."""

CANNOT: Final = (errno.EINVAL, errno.ENOTSUP)
"""What a file system says that cannot flush directories: some that are mounted over a network, or by FUSE."""

_READ = (
    os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
)  # non-blocking: a FIFO may have no writer


def open_regular(path: str | os.PathLike[str], limit: int | None = None) -> BufferedReader:
    """Opens a regular file to read its bytes. A FIFO, socket or device could block for ever, or never end.

    Args:
        path: the file, or a link to it.
        limit: bytes that it may have; None for any number.

    Raises:
        OSError: it cannot be opened, is not a regular file, or is longer than ``limit``; ``strerror`` says which.
    """
    handle = os.open(path, _READ)
    try:
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", os.fspath(path))
        if limit is not None and found.st_size > limit:
            raise OSError(errno.EFBIG, f"It has {found.st_size:,} bytes, more than {limit:,}", os.fspath(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def lock(file: IO[Any], *, wait: bool) -> None:
    """Locks an open file until it is closed or this process ends; processes forked from this one do not hold the lock.

    Nothing is locked on Windows, nor on a file system without locks.

    Raises:
        BlockingIOError: another process holds the lock, and ``wait`` is False.
    """
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            os.register_at_fork(after_in_child=file.close)  # for a child may outlive this process
    except BlockingIOError:
        raise
    except OSError:
        pass  # a file system without locks


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """The contents of a regular file of at most ``limit`` bytes.

    Raises:
        OSError: as ``open_regular``.
    """
    with open_regular(path, limit) as file:
        return file.read(os.fstat(file.fileno()).st_size)  # not ``limit``: a read allocates what it asks for


def cache_folder() -> Path:
    """The folder of what can be made again: the variable MOEKIT_CACHE, or moekit in the user's folder of caches."""
    if given := os.environ.get("MOEKIT_CACHE"):
        return Path(given).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "moekit"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moekit"


def make_directory(path: Path) -> None:
    """Makes a directory and its missing parents, and flushes the entry of each to the disk.

    Raises:
        OSError: it cannot be made.
    """
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        sync_directory(each.parent)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Has ``write`` fill a temporary file, flushes it, and moves it to ``path`` atomically.

    Raises:
        OSError: the disk is full, or the like; it names ``path``.
    """
    make_directory(path.parent)
    partial = path.with_name(f".{path.name}.tmp")
    try:
        write(partial)
        with partial.open("r+b" if WINDOWS else "rb") as file:  # Windows flushes only what it may write
            flush(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        discard(partial)
        if isinstance(error, OSError) and not error.filename and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error  # a failed write does not name its file
        raise
    sync_directory(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Replaces a file by UTF-8 text, as ``replace_file`` does.

    Raises:
        OSError: as ``replace_file``.
    """
    replace_file(path, lambda partial: partial.write_bytes(text.encode()))


def write_if_changed(file: Path, text: str) -> None:
    """Writes a text file as ``replace_text`` does, unless it is there with this text: a disk may be full."""
    if not file.is_file() or file.read_bytes() != text.encode():
        replace_text(file, text)


def discard(path: Path) -> None:
    """Removes a file, if it exists and can be removed."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass


def discard_partial(folder: Path) -> None:
    """Removes the temporary files of ``replace_file`` that a killed process left in a folder."""
    for path in folder.glob(".*.tmp"):
        discard(path)


def flush(handle: int) -> None:
    """Flushes an open file to the disk, past the drive's own cache where the system can.

    Raises:
        OSError: it cannot be flushed.
    """
    if FULL_FLUSH:
        try:
            fcntl.fcntl(handle, FULL_FLUSH)
            return
        except OSError:  # not on this file system
            pass
    os.fsync(handle)


def begin_flush(handle: int, start: int, length: int) -> None:
    """Has Linux begin to write a part of an open file to the disk, and does not wait; so that ``flush`` waits less.

    Advice that the part is not needed has this effect. What is not on the disk yet stays in memory all the same.
    """
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(handle, start, length, os.POSIX_FADV_DONTNEED)


def sync_directory(path: Path) -> None:
    """Flushes a directory's entries to the disk, if the system and the file system can.

    Raises:
        OSError: it cannot be opened, or the disk fails.
    """
    if WINDOWS:
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        flush(handle)
    except OSError as error:
        if error.errno not in CANNOT:
            raise
    finally:
        os.close(handle)
