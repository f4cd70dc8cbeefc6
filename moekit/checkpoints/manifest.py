"""The manifest of a checkpoint: which files belong to it, and what they must hold, to the last bit."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import moekit
from moekit.checkpoints.safetensors_file import Digest, digest_of
from moekit.errors import CheckpointError

FORMAT = 1
MANIFEST = "manifest.json"
AT_ONCE = 8  # files that are summed at the same time: more would ask much of a disk, and of memory
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint consists of.

    Args:
        step: optimizer steps behind it; None where it is of no training run.
        files: the digest of each file, by name.
        moekit: the version that wrote it.
        format: the version of this format.
    """

    step: int | None
    files: Mapping[str, Digest]
    moekit: str = moekit.__version__
    format: int = FORMAT

    def write(self, directory: Path) -> None:
        """Writes it, through to the disk.

        Raises:
            OSError: the disk is full, or the like.
        """
        plain = asdict(self)
        write_file(directory / MANIFEST, json.dumps({**plain, "sha256": _own(plain)}, indent=1).encode())

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Reads it, and compares it with its own sum.

        Raises:
            CheckpointError: it is missing, altered, or of a format that this moekit does not know.
        """
        path = directory / MANIFEST
        try:
            plain = json.loads(path.read_bytes())
            own = plain.pop("sha256")
            if plain["format"] != FORMAT:
                raise CheckpointError(
                    f"{path}: format {plain['format']!r}, written by moekit {plain['moekit']}\n"
                    f"  this moekit ({moekit.__version__}) reads format {FORMAT}"
                )
            files = {name: Digest(str(d["sha256"]), int(d["size"])) for name, d in plain["files"].items()}
            if own != _own(plain) or not all(PLAIN_NAME.fullmatch(name) for name in files):
                raise ValueError("it does not add up to its own sum")
            return cls(plain["step"], files, plain["moekit"], plain["format"])
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(f"{path} is missing or unreadable: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error

    def check_sizes(self, directory: Path) -> None:
        """Compares the sizes of all files, which costs nothing.

        Raises:
            CheckpointError: naming the first that is missing or too short.
        """
        for name, digest in self.files.items():
            path = directory / name
            if not path.is_file():
                raise CheckpointError(f"{path} is missing, and the manifest beside it asks for it")
            if (size := path.stat().st_size) != digest.size:
                raise CheckpointError(f"{path} is damaged: it has {size} bytes, and was written with {digest.size}")

    def check_sums(self, directory: Path, names: Iterable[str]) -> None:
        """Reads files whole, several at a time, and compares their sums.

        Raises:
            CheckpointError: naming the first that differs, in the order of ``names``.
        """
        with ThreadPoolExecutor(min(AT_ONCE, os.cpu_count() or 1)) as threads:  # hashing lets other threads run
            list(threads.map(lambda name: self._check_sum(directory / name), names))  # in order: so is the first error

    def _check_sum(self, path: Path) -> None:
        try:
            found = digest_of(path)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        if found != self.files[path.name]:
            raise CheckpointError(f"{path} is damaged: its sha256 is not the one it was written with")


def _own(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def write_file(path: Path, data: bytes) -> Digest:
    """Writes a file through to the disk.

    Raises:
        OSError: the disk is full, or the like.
    """
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return Digest(hashlib.sha256(data).hexdigest(), len(data))
