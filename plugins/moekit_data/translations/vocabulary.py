"""The vocabulary: tokens of text first, then the end of a target, then one tag for each language.

The end also starts a target: the decoder's first input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moekit.errors import DataError, MoekitError
from moekit_data.tokens import Tokens, from_state
from moekit_data.translations import LANGUAGE
from moekit_data.translations.pairs import known

TAG = re.compile(rf"\s*<({LANGUAGE})>\s*")


class Vocabulary:
    """Turns texts with a tag into ``tokens`` and back; ``languages`` are in the order of their tags.

    Attributes:
        end: the token that ends a target, and starts it.
        size: how many tokens there are.
        state: what ``restore`` needs, as plain values.
    """

    def __init__(self, tokens: Tokens, languages: Sequence[str]) -> None:
        self.tokens = tokens
        self.languages = tuple(languages)
        self.end = len(tokens.spelling)
        self.size = self.end + 1 + len(languages)
        self.state: Mapping[str, Any] = {"languages": list(languages), **tokens.state}

    def tag(self, language: str) -> int:
        """The token of a language."""
        return self.end + 1 + self.languages.index(language)

    def source(self, text: str, language: str) -> Tensor:
        """What the encoder reads, int64 ``[S]``: the tag, then the text."""
        return torch.cat([torch.tensor([self.tag(language)]), self.tokens.encode_text(text)])

    def prompt(self, text: str) -> Tensor:
        """``<de> Save changes`` as a source.

        Raises:
            MoekitError: no tag in front, or one of an unknown language; the message lists the languages.
        """
        match = TAG.match(text)
        if match is None:
            raise MoekitError(
                f"the text names no language to translate into\n  expected a tag in front, such as "
                f"'<{self.languages[0]}> Save changes'\n  languages: {', '.join(self.languages)}"
            )
        if match[1] not in self.languages:
            raise MoekitError(f"no tag <{match[1]}>: this language was not trained\n{known(match[1], self.languages)}")
        return self.source(text[match.end() :], match[1])

    def decode(self, ids: Tensor) -> str:
        """Tokens up to the first end as text, a tag as ``<de> ``, so that a source becomes its prompt again."""
        numbers = ids.tolist()
        numbers = numbers[: numbers.index(self.end)] if self.end in numbers else numbers
        text, start = "", 0
        for i, number in enumerate([*numbers, self.end]):
            if number >= self.end:
                text += self.tokens.decode(torch.tensor(numbers[start:i], dtype=torch.int64))
                start = i + 1
                if self.end < number < self.size:
                    text += f"<{self.languages[number - self.end - 1]}> "
        return text

    def num_bytes_V(self) -> Tensor:
        """int64: bytes of text that each token spells; 0 for the end and the tags."""
        return torch.cat([self.tokens.num_bytes_V(), torch.zeros(1 + len(self.languages), dtype=torch.int64)])


def restore(state: Mapping[str, Any], kind: str) -> Vocabulary:
    """The vocabulary of a stored state, of the kind of token ``bytes`` or ``bpe``.

    Raises:
        DataError: the state is damaged, or of the other kind of token.
    """
    languages = state.get("languages")
    tokens = from_state(state, kind)
    if tokens is None or not isinstance(languages, list):
        raise DataError("the stored state holds no languages, or no byte pairs: it is not of data translations")
    return Vocabulary(tokens, languages)
