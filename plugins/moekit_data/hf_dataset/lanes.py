"""A lane: the documents of one micro-batch of every step, as blocks of tokens that bookmarks find again."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from moekit.errors import DataError
from moekit_data.hf_dataset.opening import State

FORMAT = 2
"""Of bookmarks. Those of format 1, written after a resume inside a document, can name a wrong place: none is read."""

Reader = Callable[[State | None], Iterator[tuple[State, Tensor]]]
"""Documents as tokens, with their ends, from a state of the stream on; each with the state before it."""


@dataclass(frozen=True)
class Bookmark:
    """Where a block begins.

    Attributes:
        block: its number.
        epoch: how often the stream has ended before.
        state: of the stream, before the document that the block begins in; None at the start.
        offset: tokens of this document that are in earlier blocks.
    """

    block: int
    epoch: int
    state: State | None
    offset: int


class Bookmarks:
    """The bookmarks of a lane, in a file to which one line is added for each block.

    They save time and decide nothing: without them a lane is read again from its start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = {0: Bookmark(0, 0, None, 0)}
        try:
            lines = path.read_text().splitlines()
        except OSError:
            lines = []
        for line in lines:
            try:
                bookmark = Bookmark(**json.loads(line))
            except (ValueError, TypeError):
                continue  # a process was killed while it wrote
            self._known[bookmark.block] = bookmark

    def add(self, bookmark: Bookmark) -> None:
        """Keeps one.

        Raises:
            OSError: the file cannot be written to.
        """
        if bookmark.block not in self._known:
            self._known[bookmark.block] = bookmark
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps(asdict(bookmark)) + "\n")

    def last(self, block: int) -> Bookmark:
        """The last one that is not after a block."""
        return self._known[max(number for number in self._known if number <= block)]


class _Piece(NamedTuple):
    epoch: int
    state: State | None
    length: int


class Lane:
    """Consecutive blocks of ``size`` tokens; the stream starts again when it ends.

    Args:
        reader: the documents.
        size: tokens of a block, without the first of the next one, which its last window needs as a target.
        bookmarks: where blocks begin.
    """

    def __init__(self, reader: Reader, size: int, bookmarks: Bookmarks) -> None:
        self._reader = reader
        self._size = size
        self._bookmarks = bookmarks
        self._number = -1
        self._block = torch.zeros(0, dtype=torch.int32)
        self._seek(Bookmark(0, 0, None, 0))

    def block(self, number: int) -> Tensor:
        """``[size + 1]`` tokens, int32: the same for the same number, whatever was read before.

        Raises:
            DataError: the stream has no documents.
        """
        if number == self._number:
            return self._block
        near = self._bookmarks.last(number)
        if not self._next <= number or near.block > self._next:
            self._seek(near)
        while self._next <= number:
            self._read()
        return self._block

    def _seek(self, place: Bookmark) -> None:
        self._next = place.block
        self._epoch, self._offset = place.epoch, place.offset
        self._documents = self._reader(place.state)
        self._found_any = place.state is not None  # in this epoch
        self._pieces: deque[_Piece] = deque()
        self._held: list[Tensor] = []
        self._count = -place.offset  # tokens held, without those of earlier blocks

    def _read(self) -> None:
        while self._count < self._size + 1:
            state, tokens = self._document()
            self._pieces.append(_Piece(self._epoch, state, len(tokens)))
            self._held.append(tokens)
            self._count += len(tokens)
        held = torch.cat(self._held)
        begin = self._offset
        self._block = held[begin : begin + self._size + 1].clone()
        self._number, self._next = self._next, self._next + 1
        self._offset += self._size
        self._count -= self._size
        while self._offset >= self._pieces[0].length:
            self._offset -= self._pieces.popleft().length
            self._held.pop(0)
        first = self._pieces[0]
        self._bookmarks.add(Bookmark(self._next, first.epoch, first.state, self._offset))

    def _document(self) -> tuple[State | None, Tensor]:
        while True:
            for state, tokens in self._documents:
                self._found_any = True
                return state, tokens
            if not self._found_any:
                raise DataError(
                    "a stream of documents is empty\n"
                    "  expected a document for each micro-batch of a step at least: fewer ranks, or more text"
                )
            self._epoch += 1
            self._found_any = False
            self._documents = self._reader(None)
