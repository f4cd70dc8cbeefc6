"""The scores of translations: BLEU, chrF, and the share of placeholders kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

from moekit_data.translations.pairs import placeholders

NO_SPACES = ("ja", "th", "km", "lo", "my")
"""Languages that put no space between words: BLEU counts their characters. Chinese has a tokenizer of its own."""


class Translation(NamedTuple):
    """A pair, and a model's translation of its source."""

    language: str
    source: str
    reference: str
    output: str


def figures(made: Sequence[Translation]) -> dict[str, float]:
    """The scores of a run.

    Returns:
        ``bleu`` and ``chrf``, 0 to 100: the mean over languages of each language's corpus score, as GShard averages;
        ``scored_pairs``, how many were translated. If any source has placeholders, also ``pairs_with_placeholders``,
        how many have, and ``placeholders_kept``, the share of these whose output has the same placeholders as often.
    """
    parts = by_language(made).values()
    values = {
        "bleu": fmean(bleu(part) for part in parts),
        "chrf": fmean(chrf(part) for part in parts),
        "scored_pairs": float(len(made)),
    }
    kept = [placeholders(each.source) == placeholders(each.output) for each in made if placeholders(each.source)]
    if kept:
        values |= {"placeholders_kept": fmean(kept), "pairs_with_placeholders": float(len(kept))}
    return values


def by_language(made: Iterable[Translation]) -> dict[str, list[Translation]]:
    """Translations of each language, in order of appearance."""
    parts: dict[str, list[Translation]] = {}
    for each in made:
        parts.setdefault(each.language, []).append(each)
    return parts


def bleu(made: Sequence[Translation]) -> float:
    """Corpus BLEU of one language, 0 to 100 (Papineni et al. 2002), as sacrebleu counts it."""
    from sacrebleu.metrics.bleu import BLEU  # loaded for scores alone

    name = made[0].language
    base = name.replace("-", "_").partition("_")[0].lower()
    words = "zh" if base == "zh" else "char" if base in NO_SPACES else "13a"
    return float(BLEU(tokenize=words).corpus_score([m.output for m in made], [[m.reference for m in made]]).score)


def chrf(made: Sequence[Translation]) -> float:
    """Corpus chrF of one language, 0 to 100 (Popović 2015): n-grams of characters, without a tokenizer."""
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF().corpus_score([m.output for m in made], [[m.reference for m in made]]).score)
