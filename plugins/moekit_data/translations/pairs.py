"""Translation pairs: which are kept, and in which split each is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from moekit.errors import DataError, nearest
from moekit_data.corpus import count, hash_fraction
from moekit_data.translations import Translations

PLACEHOLDER = re.compile(r"%\(\w+\)[a-zA-Z]|%[sdifrx](?![a-zA-Z])|\{\w*\}")
"""What a program fills in and a translation must not change: ``%(name)s``, ``%s``, ``{name}``, ``{0}``, ``{}``."""


class Pair(NamedTuple):
    """A text and its translation.

    Attributes:
        source: English, in the pairs from Django.
        target: the same in ``language``.
        language: as in ``<language>``, the tag before the source.
    """

    source: str
    target: str
    language: str


def placeholders(text: str) -> Counter[str]:
    """How often each placeholder occurs in a text."""
    return Counter(PLACEHOLDER.findall(text))


def choose_languages(spec: Translations, pairs: Sequence[Pair], origin: str) -> list[str]:
    """The spec's languages, in its order; if it names none, those with enough pairs, sorted.

    Raises:
        DataError: a named language has no pairs, or none has enough.
    """
    size = Counter(pair.language for pair in pairs)
    if spec.languages is not None:
        for name in spec.languages:
            if name not in size:
                raise DataError(f"no pairs into '{name}' in {origin}\n{known(name, sorted(size))}")
        return list(spec.languages)
    chosen = sorted(name for name, n in size.items() if n >= spec.min_pairs)
    if not chosen:
        most = ", ".join(f"{name} {n:,}" for name, n in size.most_common(5)) or "none"
        raise DataError(
            f"no language has data.min_pairs={spec.min_pairs:,} pairs of at most data.max_chars={spec.max_chars} "
            f"characters in {origin}\n  found {most}"
        )
    return chosen


def known(name: str, languages: Sequence[str]) -> str:
    """The lines of an error that list the known languages, after the one most similar to ``name``."""
    near = nearest(name, languages)
    return (f"  did you mean '{near}'?\n" if near else "") + f"  languages: {', '.join(languages)}"


def keep(pairs: Iterable[Pair], max_chars: int) -> tuple[list[Pair], list[str]]:
    """The first pair for each source and language that is short enough; and notes about those that are skipped.

    Surrounding white space is removed. Pairs with an empty side are skipped without a note.
    """
    kept: dict[tuple[str, str], Pair] = {}
    repeated = long = 0
    for source, target, language in pairs:
        pair = Pair(source.strip(), target.strip(), language)
        if not pair.source or not pair.target:
            continue
        if max(len(pair.source), len(pair.target)) > max_chars:
            long += 1
        elif kept.setdefault((language, pair.source), pair) is not pair:
            repeated += 1
    notes = [f"{count(long, 'pair')} longer than data.max_chars={max_chars}"] if long else []
    return list(kept.values()), [*notes, *([f"{repeated:,} of a source that was there already"] if repeated else [])]


def split(pairs: Iterable[Pair], share: float) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs. A hash of the source decides, so that all its translations are in one split."""
    train: list[Pair] = []
    validation: list[Pair] = []
    for pair in pairs:
        (validation if hash_fraction(pair.source) < share else train).append(pair)
    return train, validation


def sample(pairs: Iterable[Pair], languages: Sequence[str], per_language: int) -> list[Pair]:
    """At most ``per_language`` pairs of each language, language by language; of the same sources if possible."""
    by_language: dict[str, list[Pair]] = {name: [] for name in languages}
    for pair in sorted(pairs, key=lambda pair: (hash_fraction(pair.source, "order"), pair.source)):
        if len(by_language[pair.language]) < per_language:
            by_language[pair.language].append(pair)
    return [pair for part in by_language.values() for pair in part]
