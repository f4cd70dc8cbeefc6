"""Translation pairs, English into many languages: Django's own catalogs, or a user's files."""

import re
from collections.abc import Iterable, Sequence
from typing import ClassVar

from moekit.spec.fields import option, slot
from moekit.spec.kinds import DataSpec, TokenizerSpec
from moekit_data.bpe import BytePairs

LANGUAGE = r"[\w@.+-]+"
"""The pattern of a language's name, so that ``<name>`` can be a tag."""


class Translations(DataSpec):
    """Options of translation pairs. The vocabulary holds text tokens, the end of a target, and a tag per language."""

    yields: ClassVar[str] = "pairs"
    path: str | None = option(
        None, "your own pairs: a .jsonl or .tsv file, or a folder of them; default: the catalogs of Django"
    )
    languages: list[str] | None = option(None, "target languages; null: all that have min_pairs")
    min_pairs: int = option(500, "pairs that a language must have to be included when languages is null", ge=1)
    max_chars: int = option(100, "pairs with a longer side are skipped, characters", ge=1)
    batch_tokens: int = option(1024, "tokens in a batch, source or target, whichever has more, padding included", ge=1)
    tokenizer: TokenizerSpec = slot(
        "tokenizer",
        "turns text into tokens; learnt from both sides of the training pairs",
        default=BytePairs(vocab=1920),
    )
    vocab: int = option(2048, "number of tokens: those of text, 1 for the end, 1 for each language", ge=1)
    temperature: float = option(
        5.0, "T: a language of n training pairs is sampled with probability proportional to n^(1/T)", gt=0
    )
    validation: float = option(0.1, "share of the source strings that are kept for validation", gt=0, lt=1)
    validation_pairs: int = option(32, "pairs per language in the validation set, at most", ge=1)

    def check(self) -> Iterable[str]:
        """Languages must be possible tags, each once; the vocabulary must have room for them."""
        if self.path is not None and not self.path.strip():
            yield "path is empty; give a .jsonl or .tsv file or a folder of them, or null"
        if self.languages is not None:
            wrong = [name for name in self.languages if not re.fullmatch(LANGUAGE, name)]
            if wrong:
                yield f"languages={self.languages!r}: {wrong[0]!r} is not a language name such as de or pt_BR"
            elif not self.languages or len(set(self.languages)) < len(self.languages):
                yield f"languages={self.languages!r} must be one or more different languages; null takes all"
        if self.vocab < (need := self.smallest_vocab(len(self.languages or ("one",)))):
            yield (
                f"vocab={self.vocab} is too small: tokenizer.vocab={self.tokenizer.vocab}, the end and "
                f"{_languages(self.languages)} need vocab={need} at least"
            )

    def token_options(self) -> Sequence[str]:
        """The tokenizer, and the languages: each has a token."""
        return ("tokenizer", "languages")

    def smallest_vocab(self, num_languages: int) -> int:
        """The smallest ``vocab`` with room for a number of languages."""
        return self.tokenizer.vocab + 1 + num_languages


def _languages(names: list[str] | None) -> str:
    return "1 language" if names is None or len(names) == 1 else f"{len(names)} languages"
