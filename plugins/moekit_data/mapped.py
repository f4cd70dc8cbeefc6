"""Tokens in a file that is mapped into memory."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Protocol, final

import numpy as np
import torch
from torch import Tensor


class Stream(Protocol):
    """A row of tokens: a tensor of any integer type, or one in a file."""

    def __len__(self) -> int:
        """Their number."""
        ...

    def __getitem__(self, where: slice, /) -> Tensor:
        """Some of them, next to each other."""
        ...


READS = 32
"""Reads after which the pages that were read are given back: each may have brought 64 kB."""


@final
class MappedTokens:
    """The tokens of a file. The system keeps what is read of it in memory while there is room.

    It counts these pages as memory of the process, up to the whole file. So they are given back from time to time; the
    system still has them.

    Args:
        path: the file, not empty.
        dtype: a type of numpy's.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        self._path, self._dtype = path, np.dtype(dtype)
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._reads = 0
        if hasattr(mmap, "MADV_RANDOM"):
            self._map.madvise(mmap.MADV_RANDOM)

    def __len__(self) -> int:
        """The number of tokens."""
        return len(self._map) // self._dtype.itemsize

    def __getitem__(self, where: slice, /) -> Tensor:
        """Some of the tokens, int64; the step must be 1."""
        start, stop, _ = where.indices(len(self))
        found = np.frombuffer(self._map, self._dtype, max(stop - start, 0), start * self._dtype.itemsize)
        tokens = torch.from_numpy(found.astype(np.int64))
        self._reads += 1
        if self._reads % READS == 0 and hasattr(mmap, "MADV_DONTNEED"):
            del found
            self._map.madvise(mmap.MADV_DONTNEED)
        return tokens

    def __reduce__(self) -> tuple[type[MappedTokens], tuple[Path, str]]:
        """A copy maps the same file."""
        return MappedTokens, (self._path, self._dtype.str)
