"""Text by domain, once its documents are read: tokens, windows, batches, a description."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moekit.contracts import Batch, Data, Tokenizer
from moekit.errors import DataError, MoekitError
from moekit.registry import build
from moekit_data.corpus import Domain, fingerprint
from moekit_data.specs import TextSpec
from moekit_data.windows import Windows


class TextData(Data):
    """Base of text by domain. Subclasses define ``read``.

    *Shapes*: ``inputs`` and ``targets`` are ``tokens_BS`` int64, targets one token ahead; ``domain`` ``[B]`` int64,
    an index into ``domain_names``; ``num_bytes`` the exact number of bytes of text that the targets spell (a
    separator between documents spells none).
    """

    def __init__(self, spec: TextSpec) -> None:
        self.spec = spec
        self.tokenizer: Tokenizer = build(spec.tokenizer)
        self._train: Windows | None = None
        self._validation: Windows | None = None
        self._names: list[str] = []
        self._described: dict[str, str] = {}
        self._fingerprint = ""

    @abstractmethod
    def read(self) -> tuple[list[Domain], dict[str, str]]:
        """The documents of every domain that was found, and notes for the user by name.

        Raises:
            DataError: nothing can be read; the message names the files.
        """

    def prepare(self) -> None:
        """Reads the text, learns the tokens (unless a checkpoint had them), and makes windows.

        Raises:
            DataError: nothing to read, or too little for one window in either split.
        """
        if self._train is not None:
            return
        domains, notes = self.read()
        self._fingerprint = fingerprint(text for d in domains for text in (d.name.encode(), *d.train, *d.validation))
        tokens = self.tokenizer
        if not tokens.spelling:
            tokens.train(d for domain in domains for d in domain.train)
        train, validation = [], []
        for domain in domains:
            stream = tokens.stream(domain.train)
            if len(stream) <= self.spec.seq:
                notes[domain.name] = (
                    f"skipped: {len(stream)} tokens of training text, a window needs {self.spec.seq + 1}"
                )
                continue
            held_out = tokens.stream(domain.validation)
            if len(held_out) <= self.spec.seq:
                domain.notes.append(f"no validation: {len(held_out)} tokens, a window needs {self.spec.seq + 1}")
                held_out = held_out[:0]
            train.append(stream)
            validation.append(held_out)
            self._names.append(domain.name)
            notes[domain.name] = domain.describe()
        if not train or not any(map(len, validation)):
            raise DataError(
                f"too little text for one window of {self.spec.seq + 1} tokens to "
                f"{'validate with' if train else 'train on'}\n"
                + "".join(f"  {name}: {note}\n" for name, note in notes.items())
                + "  give more text, or a smaller data.seq"
            )
        num_bytes_V = tokens.num_bytes_V()
        self._train = Windows(train, seq=self.spec.seq, num_bytes_V=num_bytes_V)
        self._validation = Windows(validation, seq=self.spec.seq, num_bytes_V=num_bytes_V)
        self._described = notes | {"tokens": self._describe_tokens(domains, train)}

    def train_batch(self, generator: torch.Generator) -> Batch:
        """``batch`` windows: a domain, then a start, each chosen uniformly."""
        return self._ready(self._train).draw(self.spec.batch, generator)

    def partial_batch(self, generator: torch.Generator, share: float) -> Batch:
        """That share of ``batch`` windows, rounded, but at least one."""
        return self._ready(self._train).draw(max(round(share * self.spec.batch), 1), generator)

    def validation_batches(self) -> Iterator[Batch]:
        """Windows evenly spread over the validation split, as many of each domain, always the same."""
        return self._ready(self._validation).spread(self.spec.validation_windows, self.spec.batch)

    def domain_names(self) -> Sequence[str]:
        """The domains that were found, in the spec's order."""
        return tuple(self._names)

    def describe(self) -> Mapping[str, str]:
        """Per domain: files, megabytes of both splits, what was skipped; then the tokens."""
        return dict(self._described)

    def fingerprint(self) -> str:
        """The checksum of all text that was read."""
        return self._fingerprint

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores the tokens, so that ``prepare`` learns none. After ``prepare`` it reads the text again.

        Raises:
            DataError: the state is of another kind of token, or damaged.
        """
        if dict(state) == self.state():
            return
        super().load_state(state)
        if self._train is not None:  # its windows hold tokens of another vocabulary
            self._train = self._validation = None
            self._names = []
            self.prepare()

    def _ready(self, windows: Windows | None) -> Windows:
        if windows is None:
            raise MoekitError(f"{type(self).__name__} has read nothing yet: call prepare() first")
        return windows

    def _describe_tokens(self, domains: list[Domain], train: list[Tensor]) -> str:
        words = self.tokenizer.describe()
        if not (self.tokenizer.num_bytes_V() > 1).any():
            return words
        size = sum(len(text) for d in domains if d.name in self._names for text in d.train)
        return f"{words}, {size / sum(map(len, train)):.2f} bytes a token"
