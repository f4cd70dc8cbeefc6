"""What a disk may hold after power has failed: records the file operations of a process, and builds such states.

The rules are those of POSIX. What was flushed stays: a file's contents by ``fsync`` of the file, names in a directory
by ``fsync`` of the directory. Of everything else any part may be on the disk: a write whole, in part or not at all;
each new name, removed name or rename of a directory independently of the others. A rename is never seen half-done.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Tree = Mapping[str, Any]
"""A directory: bytes of a file, or another tree, by name."""


@dataclass
class File:
    """An inode of a file: what ``fsync`` has flushed, and what was written since."""

    flushed: bytes = b""
    written: bytes = b""

    def variants(self) -> list[bytes]:
        """What may be on the disk: the old contents, nothing, half, or all of the new ones."""
        half = self.written[: (len(self.flushed) + len(self.written)) // 2]
        return list(dict.fromkeys([self.written, self.flushed, half, b""] if self.is_dirty else [self.flushed]))

    @property
    def is_dirty(self) -> bool:
        return self.written != self.flushed


@dataclass
class Folder:
    """An inode of a directory: the names that ``fsync`` has flushed, and the changes since, in their order.

    A change sets names to inodes, or to None where a name is removed: a rename sets two.
    """

    flushed: dict[str, Any] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)

    def now(self) -> dict[str, Any]:
        return self.after(range(len(self.changes)))

    def after(self, kept: Any) -> dict[str, Any]:
        names = dict(self.flushed)
        for i in kept:
            names.update(self.changes[i])
        return {name: inode for name, inode in names.items() if inode is not None}


class Disk:
    """A model of the directories below ``root``, fed with the file operations of this process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.top = Folder()

    def find(self, path: Path) -> Any:
        node: Any = self.top
        for name in path.relative_to(self.root).parts:
            node = node.now().get(name) if isinstance(node, Folder) else None
        return node

    def change_names(self, folder: Path, names: dict[str, Any]) -> None:
        self.find(folder).changes.append(names)

    def open(self, path: Path, truncates: bool) -> None:
        inode = self.find(path)
        if inode is None:
            inode = File()
            self.change_names(path.parent, {path.name: inode})
        elif truncates:
            inode.written = b""

    def look(self, path: Path) -> None:
        """Takes over what was written to a file so far."""
        inode = self.find(path)
        if isinstance(inode, File) and path.is_file():
            inode.written = path.read_bytes()

    def flush(self, path: Path) -> None:
        inode = self.find(path)
        if isinstance(inode, Folder):
            inode.flushed, inode.changes = inode.now(), []
        elif inode is not None:
            self.look(path)
            inode.flushed = inode.written

    def rename(self, source: Path, target: Path) -> None:
        assert source.parent == target.parent
        self.change_names(source.parent, {source.name: None, target.name: self.find(source)})

    def states(self, rng: random.Random, most: int) -> Iterator[Tree]:
        """States that the disk may be in now: nothing and everything unflushed kept, and ``most`` at random."""
        yield self._tree(self.top, lambda n: range(0), lambda variants: variants[min(1, len(variants) - 1)])
        yield self._tree(self.top, range, lambda variants: variants[0])
        for _ in range(most):
            yield self._tree(self.top, lambda n: [i for i in range(n) if rng.random() < 0.5], rng.choice)

    def _tree(self, node: Any, keep: Callable[[int], Any], choose: Callable[[list[bytes]], bytes]) -> Any:
        if isinstance(node, File):
            return choose(node.variants())
        return {name: self._tree(inode, keep, choose) for name, inode in node.after(keep(len(node.changes))).items()}


class Recorder:
    """Reports the file operations of this process below a folder to a ``Disk``, and calls ``after`` after each.

    Audit hooks cannot be removed, so there is one, which does nothing unless a recorder is active.
    """

    def __init__(self, disk: Disk, after: Callable[[str], None]) -> None:
        self.disk = disk
        self.after = after

    def inside(self, path: Any, folder: int | None = None) -> Path | None:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        if folder is not None and folder >= 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fspath(path))
        full = Path(os.path.abspath(os.fsdecode(path)))
        return full if full.is_relative_to(self.disk.root) else None

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR) and (inside := self.inside(path)):
                self.disk.open(inside, bool(flags & os.O_TRUNC))
                self.after(f"open {inside.name}")
        elif event == "os.mkdir":
            if (inside := self.inside(args[0])) and self.disk.find(inside) is None and self.disk.find(inside.parent):
                self.disk.change_names(inside.parent, {inside.name: Folder()})
                self.after(f"mkdir {inside.name}")
        elif event == "os.rename":
            source, target = self.inside(args[0]), self.inside(args[1])
            if source and target and self.disk.find(source) is not None:
                self.disk.look(source)
                self.disk.rename(source, target)
                self.after(f"rename {source.name} {target.name}")
        elif event in ("os.remove", "os.rmdir"):
            inside = self.inside(args[0], args[1] if len(args) > 1 else None)
            if inside and self.disk.find(inside) is not None:
                self.disk.change_names(inside.parent, {inside.name: None})
                self.after(f"{event} {inside.name}")

    def fsync(self, handle: int) -> None:
        if inside := self.inside(handle):
            self.disk.look(inside)
            self.after(f"before fsync {inside.name}")
            self.disk.flush(inside)
            self.after(f"fsync {inside.name}")


_active: list[Recorder] = []
_installed: list[bool] = []


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _active:
        recorder = _active.pop()  # what it does itself is not recorded
        try:
            recorder.audit(event, args)
        finally:
            _active.append(recorder)


@contextmanager
def recording(disk: Disk, after: Callable[[str], None]) -> Iterator[None]:
    """Records in this context; ``after`` is called with a name of each operation."""
    if not _installed:
        sys.addaudithook(_audit)
        _installed.append(True)
    recorder, real = Recorder(disk, after), os.fsync

    def fsync(handle: Any) -> None:  # the real one would take time, and change nothing that this process sees
        if _active:
            active = _active.pop()
            try:
                active.fsync(handle if isinstance(handle, int) else handle.fileno())
            finally:
                _active.append(active)

    os.fsync = fsync
    _active.append(recorder)
    try:
        yield
    finally:
        _active.remove(recorder)
        os.fsync = real


def write_tree(path: Path, tree: Any) -> None:
    """Makes a state real."""
    if isinstance(tree, bytes):
        path.write_bytes(tree)
        return
    path.mkdir()
    for name, inner in tree.items():
        write_tree(path / name, inner)
