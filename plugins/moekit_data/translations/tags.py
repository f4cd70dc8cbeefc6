"""Tokens of text, then the end of a target, then one tag for each language.

The end also starts a target: the decoder's first input.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from moekit.contracts import Tokenizer
from moekit.errors import DataError, MoekitError
from moekit_data.translations import LANGUAGE
from moekit_data.translations.pairs import known

TAG = re.compile(rf"\s*<({LANGUAGE})>\s*")


@final
class TaggedTokenizer(Tokenizer):
    """The tokens of another tokenizer, ``text``, with an end of its own and tags.

    Attributes:
        languages: in the order of their tags; empty before ``learn`` or ``load_state``.
    """

    def __init__(self, text: Tokenizer) -> None:
        self.text = text
        self.languages: tuple[str, ...] = ()

    def learn(self, languages: Sequence[str], documents: Iterable[bytes]) -> None:
        """Learns the tokens of text, and gives each language a tag."""
        self.text.train(documents)
        self.languages = tuple(languages)

    @property
    def spelling(self) -> Sequence[bytes]:
        """As in the text; the end and the tags spell nothing. Empty before ``learn`` or ``load_state``."""
        return [*self.text.spelling, *[b""] * (1 + len(self.languages))] if self.languages else ()

    @property
    def end(self) -> int | None:
        """The token after those of text; None before ``learn`` or ``load_state``."""
        return len(self.text.spelling) if self.languages else None

    def tag(self, language: str) -> int:
        """The token of a language."""
        return self.first_tag() + self.languages.index(language)

    def first_tag(self) -> int:
        """The token of the first language.

        Raises:
            MoekitError: no languages are known yet.
        """
        if self.end is None:
            raise MoekitError("no languages are known yet: call prepare() or load_state() of the data first")
        return self.end + 1

    def encode(self, text: str) -> Tensor:
        """``<de> Save changes`` as a source, int64 ``[S]``: the tag, then the text.

        Raises:
            MoekitError: no tag in front, or one of an unknown language; the message lists the languages.
        """
        self.first_tag()
        match = TAG.match(text)
        if match is None:
            raise MoekitError(
                f"the text names no language to translate into\n  expected a tag in front, such as "
                f"'<{self.languages[0]}> Save changes'\n  languages: {', '.join(self.languages)}"
            )
        if match[1] not in self.languages:
            raise MoekitError(f"no tag <{match[1]}>: this language was not trained\n{known(match[1], self.languages)}")
        return torch.cat([torch.tensor([self.tag(match[1])]), self.text.encode(text[match.end() :])])

    def decode(self, ids: Tensor) -> str:
        """Tokens up to the first end as text, a tag as ``<de> ``, so that a source becomes its prompt again."""
        first, numbers = self.first_tag(), ids.tolist()
        end = first - 1
        numbers = numbers[: numbers.index(end)] if end in numbers else numbers
        text, start = "", 0
        for i, number in enumerate([*numbers, end]):
            if number >= end:
                text += self.text.decode(torch.tensor(numbers[start:i], dtype=torch.int64))
                start = i + 1
                if end < number < first + len(self.languages):
                    text += f"<{self.languages[number - first]}> "
        return text

    def example(self) -> str:
        """``<de> Save changes``, for the first language."""
        return f"<{self.languages[0]}> Save changes" if self.languages else super().example()

    def describe(self) -> str:
        """The tokens of text."""
        return self.text.describe()

    def state(self) -> dict[str, Any]:
        """The languages, and what the text's tokenizer learnt; empty before ``learn``."""
        return {"languages": list(self.languages), **self.text.state()} if self.languages else {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores languages and tokens.

        Raises:
            DataError: the state is damaged, or of another kind of tokenizer.
        """
        languages = state.get("languages")
        self.text.load_state({key: value for key, value in state.items() if key != "languages"})
        if not self.text.spelling or not isinstance(languages, list):
            raise DataError("the stored state holds no languages, or no tokens: it is not of data translations")
        self.languages = tuple(languages)
