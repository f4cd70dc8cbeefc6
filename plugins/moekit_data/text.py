"""Text by domain, once its documents are read: tokens, windows, batches, a description."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from moekit.contracts import Batch, Data, Tokenizer
from moekit.errors import DataError, MoekitError, nearest
from moekit.registry import build
from moekit_data.corpus import Domain, count, fingerprint
from moekit_data.mapped import Stream
from moekit_data.specs import DomainTextSpec
from moekit_data.windows import Windows, end_of


class TextData(Data):
    """Base of text by domain. Subclasses define ``tokenised``.

    *Shapes*: ``inputs`` and ``targets`` are ``tokens_BS`` int64, targets one token ahead; ``domain`` ``[B]`` int64,
    an index into ``domain_names``; ``num_bytes`` the exact number of bytes of text that the targets spell (a
    separator between documents spells none).
    """

    def __init__(self, spec: DomainTextSpec) -> None:
        self.spec = spec
        self.tokenizer: Tokenizer = build(spec.tokenizer)
        self._train: Windows | None = None
        self._validation: Windows | None = None
        self._names: list[str] = []
        self._described: dict[str, str] = {}
        self._fingerprint = ""

    @abstractmethod
    def tokenised(self) -> Tokenised:
        """Reads the text, learns the tokens unless they are known, and turns it into them.

        Raises:
            DataError: nothing can be read; the message names the files.
        """

    def prepare(self) -> None:
        """Reads the text, learns the tokens (unless a checkpoint had them), and makes windows.

        Raises:
            DataError: nothing to read, too little for one window in either split, or ``weights`` name no domain.
        """
        if self._train is not None:
            return
        found = self.tokenised()
        notes, need = dict(found.notes), self.spec.seq + 1
        domains: list[TokenDomain] = []
        for domain in found.domains:
            if len(domain.train) < need:
                notes[domain.name] = f"skipped: {len(domain.train)} tokens of training text, a window needs {need}"
                continue
            if len(domain.validation) < need:
                note = f"no validation: {len(domain.validation)} tokens, a window needs {need}"
                nothing = torch.zeros(0, dtype=torch.int64)
                domain = replace(domain, validation=nothing, notes=[*domain.notes, note])
            domains.append(domain)
            notes[domain.name] = domain.describe()
        if not domains or not any(len(domain.validation) for domain in domains):
            raise DataError(
                f"too little text for one window of {need} tokens to {'validate with' if domains else 'train on'}\n"
                + "".join(f"  {name}: {note}\n" for name, note in notes.items())
                + "  give more text, or a smaller data.seq"
            )
        seq, num_bytes_V = self.spec.seq, self.tokenizer.num_bytes_V()
        weights = self._weights(domains)
        self._fingerprint = found.fingerprint
        self._names = [domain.name for domain in domains]
        end = end_of(self.tokenizer) if self.spec.marks_documents() else None
        self._train = Windows([d.train for d in domains], seq=seq, num_bytes_V=num_bytes_V, end=end, weights=weights)
        self._validation = Windows([d.validation for d in domains], seq=seq, num_bytes_V=num_bytes_V, end=end)
        if weights is not None:
            shares = (f"{name} {weight / sum(weights):.1%}" for name, weight in zip(self._names, weights, strict=True))
            notes["mixture"] = ", ".join(shares)
        notes |= self._describe_validation(self._validation)
        self._described = notes | {"tokens": self._describe_tokens(domains)}

    def train_batch(self, generator: torch.Generator) -> Batch:
        """``batch`` windows: a domain by its weight, then a start uniformly."""
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

    def _weights(self, domains: list[TokenDomain]) -> list[float] | None:
        """How often each domain is sampled; None for equally often."""
        names, given = [domain.name for domain in domains], self.spec.weights
        if unknown := [name for name in given if name not in names]:
            near = nearest(unknown[0], names)
            raise DataError(
                f"data.weights: no domain '{unknown[0]}' with text" + (f" (did you mean '{near}'?)" if near else "")
                + f"\n  the domains are {', '.join(names)}"
            )  # fmt: skip
        if self.spec.temperature is not None:
            return [len(domain.train) ** (1 / self.spec.temperature) for domain in domains]
        return [given.get(name, 1.0) for name in names] if given else None

    def _describe_validation(self, windows: Windows) -> dict[str, str]:
        """Says if a small domain limits the validation set, which has as many windows of each."""
        wanted = self.spec.validation_windows
        if (found := windows.num_spread(wanted)) == wanted:
            return {}
        smallest = min((length, name) for length, name in zip(windows.lengths, self._names, strict=True) if length)[1]
        said = f"{count(found, 'window')} per domain, of the {wanted:,} requested, limited by domain {smallest}"
        return {"validation": said}

    def _describe_tokens(self, domains: list[TokenDomain]) -> str:
        words, num_bytes_V = self.tokenizer.describe(), self.tokenizer.num_bytes_V()
        if num_bytes_V is not None and not (num_bytes_V > 1).any():
            return words
        size = sum(domain.num_bytes[0] for domain in domains)
        return f"{words}, {size / sum(len(domain.train) for domain in domains):.2f} bytes a token"


@dataclass(frozen=True)
class TokenDomain:
    """One kind of text, as tokens.

    Attributes:
        name: as in the spec, or of the folder it came from.
        train, validation: the documents of either split, each with the end after it.
        num_bytes, num_texts: of text, in both splits.
        notes: what was skipped, and why.
    """

    name: str
    train: Stream
    validation: Stream
    num_bytes: tuple[int, int]
    num_texts: tuple[int, int]
    notes: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """Megabytes and number of texts (files, records) of both splits, and the notes, in a line."""
        train, validation = (
            f"{size / 1e6:.2f} MB in {count(texts, 'text')}"
            for size, texts in zip(self.num_bytes, self.num_texts, strict=True)
        )
        return "; ".join([f"train {train}, validation {validation}", *self.notes])


@dataclass(frozen=True)
class Tokenised:
    """A corpus as tokens.

    Attributes:
        domains: in order.
        notes: for the user, by name.
        fingerprint: a checksum of the text and its splits, whatever the tokens.
    """

    domains: list[TokenDomain]
    notes: dict[str, str]
    fingerprint: str


def tokenise(domains: list[Domain], notes: dict[str, str], tokenizer: Tokenizer) -> Tokenised:
    """Text in memory as tokens; learns them from the training text if there are none yet.

    Raises:
        DataError: the tokenizer cannot learn them.
    """
    if not tokenizer.spelling:
        tokenizer.train(text for domain in domains for text in domain.train)
    found = [
        TokenDomain(
            name=d.name,
            train=tokenizer.stream(d.train),
            validation=tokenizer.stream(d.validation),
            num_bytes=(sum(map(len, d.train)), sum(map(len, d.validation))),
            num_texts=(len(d.train), len(d.validation)),
            notes=d.notes,
        )
        for d in domains
    ]
    return Tokenised(
        found, notes, fingerprint(text for d in domains for text in (d.name.encode(), *d.train, *d.validation))
    )
