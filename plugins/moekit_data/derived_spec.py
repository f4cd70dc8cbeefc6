"""Options of data that makes pairs of another data's text: which text, and how many tokens there are. Torch-free.

The vocabulary is laid out alike in all of them, so that a model can go from one to another (pre-training by span
corruption, then fine-tuning): V tokens of text from 0, the end of a target at V, sentinels from V + 1 on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from moekit.spec.fields import option, slot
from moekit.spec.kinds import DataSpec


@dataclass(frozen=True, kw_only=True)
class DerivedSpec(DataSpec):
    """Base of the specs of data that makes pairs of text."""

    yields: ClassVar[str] = "pairs"
    text: DataSpec = slot("data", "the text that pairs are made of, by windows of tokens; its batch and seq count")
    vocab: int = option(320, "number of tokens: those of text, 1 for the end of a target, then sentinels", ge=2)

    def text_vocab(self) -> int:
        """V, tokens of the text."""
        return int(getattr(self.text, "vocab", 0))

    def smallest_vocab(self) -> int:
        """The least ``vocab`` that has room for the text's tokens and the end."""
        return self.text_vocab() + 1

    def check(self) -> Iterable[str]:
        """There are tokens of text, of a known number, and room for the others beside them."""
        name = type(self.text).__name__
        if self.text.yields != "tokens" or not self.text_vocab():
            yield f"text: {name} yields '{self.text.yields}' and no text tokens; take local_text or text_files"
        elif self.vocab < (need := self.smallest_vocab()):
            yield (
                f"vocab={self.vocab} is too small for the {self.text_vocab()} tokens of {name} and its own: "
                f"{need} or more are needed"
            )
