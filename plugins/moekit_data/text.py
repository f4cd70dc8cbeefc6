"""Text by domain, once its documents are read: tokens, windows, batches, a description."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moekit.contracts import Batch, Data
from moekit.errors import DataError, MoekitError
from moekit_data.corpus import Domain, fingerprint
from moekit_data.specs import TextSpec
from moekit_data.tokens import PairTokens, Tokens, from_state
from moekit_data.windows import Windows


class TextData(Data):
    """Base of text by domain. Subclasses define ``read``.

    *Shapes*: ``inputs`` and ``targets`` are ``tokens_BS`` int64, targets one token ahead; ``domain`` ``[B]`` int64,
    an index into ``domain_names``; ``num_bytes`` the exact number of bytes of text that the targets spell (a
    separator between documents spells none).
    """

    def __init__(self, spec: TextSpec) -> None:
        self.spec = spec
        self._tokens: Tokens | None = from_state({}, spec.tokens)
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
        """Reads the text, learns byte pairs where ``tokens=bpe`` (unless a checkpoint had them), and makes windows.

        Raises:
            DataError: nothing to read, or too little for one window in either split.
        """
        if self._train is not None:
            return
        domains, notes = self.read()
        self._fingerprint = fingerprint(text for d in domains for text in (d.name.encode(), *d.train, *d.validation))
        if self._tokens is None:
            self._tokens = PairTokens.learn((d for domain in domains for d in domain.train), self.spec.vocab)
        tokens = self._tokens
        train, validation = [], []
        for domain in domains:
            stream = tokens.encode(domain.train)
            if len(stream) <= self.spec.seq:
                notes[domain.name] = (
                    f"skipped: {len(stream)} tokens of training text, a window needs {self.spec.seq + 1}"
                )
                continue
            held_out = tokens.encode(domain.validation)
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

    def encode(self, text: str) -> Tensor:
        """Text as tokens, int64 ``[S]``. ``"\\0"`` starts a document.

        Raises:
            MoekitError: byte pairs are neither learnt nor loaded yet.
        """
        return self._known_tokens().encode_text(text)

    def decode(self, ids: Tensor) -> str:
        """Tokens as text; invalid UTF-8 becomes U+FFFD, separators disappear.

        Raises:
            MoekitError: byte pairs are neither learnt nor loaded yet.
        """
        return self._known_tokens().decode(ids)

    def num_bytes_V(self) -> Tensor:
        """int64 ``[V]``: bytes of text that each token spells; 0 for the separator.

        Raises:
            MoekitError: byte pairs are neither learnt nor loaded yet.
        """
        return self._known_tokens().num_bytes_V()

    def state(self) -> dict[str, Any]:
        """The learnt byte pairs as JSON text under ``bpe``; empty for bytes."""
        return {} if self._tokens is None else dict(self._tokens.state)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores the tokens, so that ``prepare`` learns none. After ``prepare`` it reads the text again.

        Raises:
            DataError: the state is of another kind of token, or damaged.
        """
        if dict(state) == self.state():
            return
        self._tokens = from_state(state, self.spec.tokens)
        if self._train is not None:  # its windows hold tokens of another vocabulary
            self._train = self._validation = None
            self._names = []
            self.prepare()

    def _known_tokens(self) -> Tokens:
        if self._tokens is None:
            raise MoekitError(f"{type(self).__name__} knows no byte pairs yet: call prepare() or load_state() first")
        return self._tokens

    def _ready(self, windows: Windows | None) -> Windows:
        if windows is None:
            raise MoekitError(f"{type(self).__name__} has read nothing yet: call prepare() first")
        return windows

    def _describe_tokens(self, domains: list[Domain], train: list[Tensor]) -> str:
        if self.spec.tokens == "bytes":
            return "bytes"
        size = sum(len(text) for d in domains if d.name in self._names for text in d.train)
        known = len(self._known_tokens().spelling)
        return f"{known:,} byte pairs, {size / sum(map(len, train)):.2f} bytes a token"
