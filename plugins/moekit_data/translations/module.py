"""Translation pairs as data: sampled by language, and batched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moekit.contracts import Batch, Data
from moekit.errors import DataError, MoekitError
from moekit.registry import build
from moekit_data.corpus import count, fingerprint
from moekit_data.padding import side_by_side
from moekit_data.translations import Translations
from moekit_data.translations.batches import Bucket, TokenPair, encode, slices, width
from moekit_data.translations.pairs import Pair, choose_languages, keep, placeholders, sample, split
from moekit_data.translations.reading import read_django, read_files
from moekit_data.translations.tags import TaggedTokenizer

MAX_NAMED = 12  # languages that are named at the start of a run


class TranslationData(Data):
    """English into many languages. The source begins with a tag that names the language; all share one vocabulary.

    *Shapes*: ``inputs`` and ``targets`` ``tokens_BS`` int64: the target after the end token, and the target before it;
    ``source.tokens`` int64 ``[B, S]`` with an S of its own; ``valid`` and ``source.valid`` False for padding;
    ``domain`` ``[B]`` int64, the language; ``num_bytes`` the bytes of text that the targets spell.

    Each source string is in one split with all its translations: many languages translate the same strings.

    *Source*: languages are sampled with temperature as in Arivazhagan et al., "Massively multilingual neural machine
    translation in the wild" (2019, arXiv:1907.05019, section 4.2), which GShard's data follows.
    """

    def __init__(self, spec: Translations) -> None:
        self.spec = spec
        self.tokenizer: TaggedTokenizer = TaggedTokenizer(build(spec.tokenizer))
        self._bucket: Bucket | None = None
        self._validation: list[Pair] = []
        self._num_bytes_V: Tensor | None = None
        self._described: dict[str, str] = {}
        self._fingerprint = ""

    def prepare(self) -> None:
        """Reads and splits the pairs, and learns the tokens (unless a checkpoint had them).

        Raises:
            DataError: a package is not installed, a file is malformed, a language is missing, or ``vocab`` too small.
        """
        if self._bucket is not None:
            return
        if self.spec.path is None:
            origin, read = "Django's catalogs", read_django(self.tokenizer.languages or self.spec.languages or ())
        else:
            origin, read = self.spec.path, read_files(Path(self.spec.path))
        pairs, notes = keep(read, self.spec.max_chars)
        languages = self.tokenizer.languages or choose_languages(self.spec, pairs, origin)
        pairs = [pair for pair in pairs if pair.language in set(languages)]
        train, validation = split(pairs, self.spec.validation)
        self._validation = sample(validation, languages, self.spec.validation_pairs)
        if not train or not self._validation:
            raise DataError(
                f"too few pairs in {origin}: {len(train)} to train on, {len(validation)} to validate with\n"
                "  give more pairs, or another data.validation"
            )
        self._fingerprint = fingerprint(text.encode() for pair in (*train, *self._validation) for text in pair)
        if not self.tokenizer.languages:
            self._learn(train, languages)
        token_pairs = encode(train, self.tokenizer)
        self._num_bytes_V = self.tokenizer.num_bytes_V()
        self._bucket = Bucket(
            token_pairs, len(languages), batch_tokens=self.spec.batch_tokens, temperature=self.spec.temperature
        )
        self._described = {
            "pairs": f"{origin}: train {len(train):,}, validation {len(self._validation):,} of {len(validation):,}, "
            f"split by {count(len({pair.source for pair in (*train, *validation)}), 'source string')}",
            **({"skipped": ", ".join(notes)} if notes else {}),
            **describe_training(train, token_pairs, self.tokenizer),
        }

    def _learn(self, train: Sequence[Pair], languages: Sequence[str]) -> None:
        need = self.spec.smallest_vocab(len(languages))
        if self.spec.vocab < need:
            raise DataError(
                f"data.vocab={self.spec.vocab} has no room for {count(len(languages), 'language')}\n"
                f"  set data.vocab={need} or more, or name fewer in data.languages"
            )
        texts = [*dict.fromkeys(pair.source for pair in train), *(pair.target for pair in train)]
        self.tokenizer.learn(languages, (text.encode() for text in texts))

    def train_batch(self, generator: torch.Generator) -> Batch:
        """About ``batch_tokens`` tokens of pairs of similar length, sampled by temperature."""
        return self._collate(self._ready().draw(generator))

    def validation_batches(self) -> Iterator[Batch]:
        """At most ``validation_pairs`` of each language, short ones first, always the same."""
        self._ready()
        pairs = sorted(encode(self._validation, self.tokenizer), key=width)
        for chosen in slices([width(pair) for pair in pairs], self.spec.batch_tokens):
            yield self._collate(pairs[chosen.start : chosen.stop])

    def domain_names(self) -> Sequence[str]:
        """The languages, in the order of their tags."""
        return self.tokenizer.languages

    def describe(self) -> Mapping[str, str]:
        """Where the pairs come from, how many each split has, the languages, the tokens."""
        return dict(self._described)

    def fingerprint(self) -> str:
        """The checksum of all pairs."""
        return self._fingerprint

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores languages and byte pairs, so that ``prepare`` learns none. After ``prepare`` it reads pairs again.

        Raises:
            DataError: the state is of another kind of token, or damaged.
        """
        if dict(state) == self.state():
            return
        super().load_state(state)
        if self._bucket is not None:
            self._bucket = None
            self.prepare()

    def _collate(self, pairs: Sequence[TokenPair]) -> Batch:
        end = self.tokenizer.end
        assert end is not None  # the pairs are tokens
        return side_by_side(
            [pair.source for pair in pairs],
            [pair.target for pair in pairs],
            end=end,
            domain=torch.tensor([pair.domain for pair in pairs]),
            num_bytes_V=self._num_bytes_V,
        )

    def _ready(self) -> Bucket:
        if self._bucket is None:
            raise MoekitError(f"{type(self).__name__} has read nothing yet: call prepare() first")
        return self._bucket


def describe_training(
    train: Sequence[Pair], token_pairs: Sequence[TokenPair], tokenizer: TaggedTokenizer
) -> dict[str, str]:
    """Languages, placeholders and tokens of the training pairs, as text."""
    sizes = Counter(pair.language for pair in train)
    counts = [sizes[name] for name in tokenizer.languages]
    names = ", ".join(tokenizer.languages[:MAX_NAMED]) + ", ..." * (len(counts) > MAX_NAMED)
    num_marked = sum(bool(placeholders(pair.source)) for pair in train)
    size = sum(len(pair.target.encode()) for pair in train) / len(train)
    length = sum(len(pair.target) for pair in token_pairs) / len(train)
    return {
        "languages": f"{len(counts)}: {names} (each {min(counts):,} to {max(counts):,} training pairs)",
        "placeholders": f"in {num_marked:,} training pairs ({num_marked / len(train):.0%}), such as %(name)s",
        "tokens": f"{tokenizer.describe()}, the end, "
        f"{count(len(counts), 'language tag')}; a target has {size:.1f} bytes in {length:.1f} tokens",
    }
