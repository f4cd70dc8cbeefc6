"""Translation pairs: which are kept, and on which side of the split each lies."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from moekit.errors import DataError, nearest
from moekit_data.corpus import count, place
from moekit_data.translations import Translations

PLACEHOLDER = re.compile(r"%\(\w+\)[a-zA-Z]|%[sdifrx](?![a-zA-Z])|\{\w*\}")
"""What a program fills in and a translation must not change: ``%(name)s``, ``%s``, ``{name}``, ``{0}``, ``{}``."""


class Pair(NamedTuple):
    """A text and its translation.

    Attributes:
        source: English, in what moekit ships.
        target: the same in ``language``.
        language: as in ``<language>``, the tag before the source.
    """

    source: str
    target: str
    language: str


def placeholders(text: str) -> Counter[str]:
    """How often each placeholder stands in a text."""
    return Counter(PLACEHOLDER.findall(text))


def choose_languages(spec: Translations, pairs: Sequence[Pair], origin: str) -> list[str]:
    """The languages that the spec asks for, in its order; those with enough pairs, by name, where it asks for all.

    Raises:
        DataError: one that is asked for has no pairs, or none has enough.
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
    """The lines of an error that name the languages there are, the one most like ``name`` first."""
    near = nearest(name, languages)
    return (f"  did you mean '{near}'?\n" if near else "") + f"  languages: {', '.join(languages)}"


def keep(pairs: Iterable[Pair], max_chars: int) -> tuple[list[Pair], list[str]]:
    """Pairs that are short enough, the first for each source and language; and what was left out.

    Space around a text is cut off. A pair whose side is empty then is no pair.
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
    """Training and validation pairs. A source lies, with all its translations, where a hash of it says."""
    train: list[Pair] = []
    validation: list[Pair] = []
    for pair in pairs:
        (validation if place(pair.source) < share else train).append(pair)
    return train, validation


def sample(pairs: Iterable[Pair], languages: Sequence[str], per_language: int) -> list[Pair]:
    """At most so many pairs of each language, language after language; the same sources as far as they go."""
    by_language: dict[str, list[Pair]] = {name: [] for name in languages}
    for pair in sorted(pairs, key=lambda pair: (place(pair.source, "order"), pair.source)):
        if len(by_language[pair.language]) < per_language:
            by_language[pair.language].append(pair)
    return [pair for part in by_language.values() for pair in part]
