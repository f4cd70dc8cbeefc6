"""Options that several data sets share: those of text, and those of pairs made of text. Torch-free."""

from collections.abc import Iterable
from typing import ClassVar, Literal

from moekit.spec.fields import option, slot
from moekit.spec.kinds import DataSpec, TokenizerSpec
from moekit_data.bytes import Bytes


class TextSpec(DataSpec):
    """Base of the specs of text."""

    seq: int = option(256, "tokens in a window", ge=1)
    batch: int = option(16, "windows in a batch", ge=1)
    tokenizer: TokenizerSpec = slot("tokenizer", "turns the text into tokens", default=Bytes())
    validation: float = option(0.1, "share of the text that is kept for validation, by whole texts", gt=0, lt=1)
    documents: Literal["joined", "masked"] = option(
        "joined", "whether attention crosses from a document to the next one in a window (joined), or not (masked)"
    )
    validation_windows: int = option(64, "windows per domain in the validation set, at most", ge=1)

    def marks_documents(self) -> bool:
        """Whether documents are masked."""
        return self.documents == "masked"


class DomainTextSpec(TextSpec):
    """Base of the specs of text that has domains."""

    weights: dict[str, float] = option(
        {}, "how often a domain is sampled, relative to the others; 1 for those that are not named"
    )
    temperature: float | None = option(
        None, "T: a domain of n training tokens is sampled with probability proportional to n^(1/T), without weights; "
        "null: all equally often", gt=0,
    )  # fmt: skip

    def check(self) -> Iterable[str]:
        """Weights must be positive, and exclude a temperature."""
        if wrong := [name for name, weight in self.weights.items() if not 0 < weight < float("inf")]:
            yield f"weights={self.weights!r}: the weight of {wrong[0]} must be more than 0, and finite"
        if self.weights and self.temperature is not None:
            yield "weights and temperature are both given, but each says how often domains are sampled; remove one"


class DerivedSpec(DataSpec):
    """Base of the specs of pairs that are made of another data set's text.

    All of them number tokens alike, so that a model can change from one to another (pre-training by span corruption,
    then fine-tuning): V tokens of text from 0, the end of a target at V, sentinels from V + 1.
    """

    yields: ClassVar[str] = "pairs"
    text: DataSpec = slot("data", "the text that pairs are made of, by windows of tokens; its batch and seq count")
    vocab: int = option(320, "number of tokens: those of text, 1 for the end of a target, then sentinels", ge=2)

    def text_vocab(self) -> int:
        """V, the number of tokens of the text."""
        return self.text.num_tokens() or 0

    def num_sentinels(self) -> int:
        """How many sentinels a prompt may have; override where there are any."""
        return 0

    def smallest_vocab(self) -> int:
        """The smallest ``vocab`` with room for the text's tokens and the end."""
        return self.text_vocab() + 1

    def check(self) -> Iterable[str]:
        """The text must yield tokens, and the vocabulary must have room for them, the end and the sentinels."""
        name = type(self.text).__name__
        if self.text.yields != "tokens" or not self.text_vocab():
            yield f"text: {name} yields '{self.text.yields}' and no text tokens; take local_text or text_files"
        elif self.text.marks_documents():
            yield "text.documents=masked has no effect on pairs made of the text; text.documents: joined"
        elif self.vocab < (need := self.smallest_vocab()):
            yield (
                f"vocab={self.vocab} is too small for the {self.text_vocab()} tokens of {name} and its own: "
                f"{need} or more are needed"
            )
