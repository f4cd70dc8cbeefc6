"""Conversations as batches: one a row, padded; targets that are not learnt are masked. Reference: ``naive.py``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from moekit.contracts import Batch, Data, Tokenizer
from moekit.contracts.run import NOT_LEARNT
from moekit.errors import DataError, MoekitError
from moekit.files import open_regular
from moekit.registry import build
from moekit_data.chat import Chat
from moekit_data.chat.template import Segment, plain, segments, template_of
from moekit_data.padding import pad

LONGEST = 16 << 20  # bytes of a line


class Row(NamedTuple):
    """A conversation as tokens, int64 ``[S]``, and which of them are learnt, bool ``[S]``."""

    tokens: Tensor
    learnt: Tensor


@final
class ChatData(Data):
    """Conversations, each whole in one row. The model reads all of it, and learns the messages of some roles.

    *Shapes*: ``inputs`` and ``targets`` ``tokens_BS`` int64, S the longest rounded up; ``valid`` False for padding;
    a target that is not learnt is ``NOT_LEARNT``.

    Text is encoded stretch by stretch, divided where an answer begins and ends: a model that is asked encodes the
    question alone, too. If the tokenizer has an end and the template does not write it, it ends each answer.
    """

    def __init__(self, spec: Chat) -> None:
        self.spec = spec
        self.tokenizer: Tokenizer = build(spec.tokenizer)
        self._train: list[Row] = []
        self._validation: list[Row] = []
        self._read: list[list[list[Segment]]] = []
        self._copies = 0
        self._notes: dict[str, str] = {}
        self._fingerprint = ""

    def prepare(self) -> None:
        """Reads the conversations, and learns the tokens (unless a checkpoint had them).

        Raises:
            DataError: a file is missing, unreadable or malformed, naming the line; or there is nothing to learn.
        """
        if self._train:
            return
        spec = self.spec
        render = plain if spec.template is None else template_of(Path(spec.template))
        chats = _read(Path(spec.path))
        if spec.validation_path:
            splits = _without_copies(chats, _read(Path(spec.validation_path)))
            self._copies = len(chats) - len(splits[0])
        else:
            splits = _split(chats, spec.validation)
        text = [[segments(chat, spec.roles, render) for chat in split] for split in splits]
        self._fingerprint = hashlib.sha256(repr(text).encode()).hexdigest()
        if not self.tokenizer.spelling:
            self.tokenizer.train("".join(part for part, _ in chat).encode() for chat in text[0])
        self._read = text
        self._encode()

    def _encode(self) -> None:
        rows = [[self._row(chat) for chat in split] for split in self._read]
        kept = [[row for row in split if row.learnt[1:].any()] for split in rows]
        self._train, self._validation = kept
        copies = f"; {self._copies:,} not trained on, which validate" if self._copies else ""
        if not kept[0] or not kept[1]:
            raise DataError(
                f"{self.spec.path}: {len(kept[0])} conversations to train on, {len(kept[1])} to validate with{copies}\n"
                f"  expected messages of {' or '.join(self.spec.roles)} in the first data.seq={self.spec.seq} tokens"
            )
        read, learnt = (sum(int(part) for part in parts) for parts in zip(*map(_sizes, kept[0]), strict=True))
        left = sum(map(len, rows)) - sum(map(len, kept))
        self._notes = {
            "chats": f"train {len(kept[0]):,}, validation {len(kept[1]):,}"
            + (f"; {left:,} skipped, in which nothing is learnt" if left else "")
            + copies,
            "tokens": f"{self.tokenizer.describe()}; {learnt:,} of {read:,} are learnt ({', '.join(self.spec.roles)})",
        }

    def _row(self, chat: Sequence[Segment]) -> Row:
        tokens, learnt = [], []
        end = self.tokenizer.end
        for text, wanted in chat:
            ids = self.tokenizer.encode(text)
            if wanted and end is not None and end not in ids.tolist():
                ids = torch.cat([ids, torch.tensor([end])])
            tokens.append(ids)
            learnt.append(torch.full(ids.shape, wanted))
        size = self.spec.seq + 1
        return Row(torch.cat(tokens)[:size], torch.cat(learnt)[:size])

    def train_batch(self, generator: torch.Generator) -> Batch:
        """``batch`` conversations, each chosen uniformly."""
        return self._draw(self.spec.batch, generator)

    def partial_batch(self, generator: torch.Generator, share: float) -> Batch:
        """That share of ``batch`` conversations, rounded, but at least one."""
        return self._draw(max(round(share * self.spec.batch), 1), generator)

    def validation_batches(self) -> Iterator[Batch]:
        """Conversations in an order that is always the same."""
        self._ready()
        rows = self._validation[: self.spec.batch * self.spec.validation_batches]
        return (self._collate(rows[i : i + self.spec.batch]) for i in range(0, len(rows), self.spec.batch))

    def describe(self) -> Mapping[str, str]:
        """How many conversations, and how many of their tokens are learnt."""
        return dict(self._notes)

    def fingerprint(self) -> str:
        """The checksum of all text, and of what is learnt of it."""
        return self._fingerprint

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores the tokens, so that ``prepare`` learns none. After ``prepare`` it encodes the text again.

        Raises:
            DataError: the state is of another kind of token, or damaged.
        """
        if dict(state) == self.state():
            return
        super().load_state(state)
        if self._train:
            self._encode()

    def _draw(self, size: int, generator: torch.Generator) -> Batch:
        rows = self._ready()
        return self._collate([rows[i] for i in torch.randint(len(rows), (size,), generator=generator).tolist()])

    def _ready(self) -> list[Row]:
        if not self._train:
            raise MoekitError(f"{type(self).__name__} has read nothing yet: call prepare() first")
        return self._train

    def _collate(self, rows: Sequence[Row]) -> Batch:
        inputs, valid = pad([row.tokens[:-1] for row in rows], 0)
        targets, _ = pad([row.tokens[1:].where(row.learnt[1:], NOT_LEARNT) for row in rows], NOT_LEARNT)
        num_bytes_V = self.tokenizer.num_bytes_V()
        num_bytes = None if num_bytes_V is None else num_bytes_V[targets[targets != NOT_LEARNT]].sum()
        return Batch(inputs, targets, valid, num_bytes)


def _sizes(row: Row) -> tuple[int, int]:
    return len(row.tokens), int(row.learnt[1:].sum())


def _split(chats: list[list[dict[str, str]]], share: float) -> list[list[list[dict[str, str]]]]:
    """Training and validation conversations; equal ones are in the same split."""
    order = sorted(chats, key=lambda chat: hashlib.sha256(repr(chat).encode()).hexdigest())
    first = max(round(len(order) * share), 1)
    while first < len(order) and order[first] == order[first - 1]:
        first += 1
    return [order[first:], order[:first]]


def _without_copies(
    chats: list[list[dict[str, str]]], validation: list[list[dict[str, str]]]
) -> list[list[list[dict[str, str]]]]:
    """Training and validation conversations; one that is in both files validates."""
    held = set(map(repr, validation))
    return [[chat for chat in chats if repr(chat) not in held], validation]


def _read(path: Path) -> list[list[dict[str, str]]]:
    """The conversations of a file: roles and contents.

    Raises:
        DataError: it is missing, or a line is malformed.
    """
    found = []
    try:
        with open_regular(path) as file:
            number = 0
            while line := file.readline(LONGEST):
                number += 1
                if line.strip():
                    found.append(_messages(line, f"{path}, line {number}"))
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}\n  looked in {Path.cwd()}, where the command runs"
        ) from error
    return found


def _messages(line: bytes, where: str) -> list[dict[str, str]]:
    form = '{"messages": [{"role": "user", "content": "..."}, ...]}'
    try:
        record = json.loads(line)
        given = record["messages"]
        messages = [{"role": each["role"], "content": each["content"]} for each in given]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise DataError(f"{where}: {type(error).__name__}: {error}\n  expected {form}") from error
    wrong = [value for each in messages for value in each.values() if not isinstance(value, str)]
    if wrong or not messages:
        found = f"{wrong[0]!r}" if wrong else "no message"
        raise DataError(f"{where}: {found}\n  expected {form}, with text in both")
    return messages
