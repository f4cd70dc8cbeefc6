"""Byte pairs as tokens, learnt and applied by the ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from moekit.contracts import Tokenizer
from moekit.errors import DataError, MoekitError
from moekit.extras import require
from moekit_data.bpe import BytePairs

END = b"\0"


@final
class BytePairTokenizer(Tokenizer):
    """Bytes and merges of them, which spell any text exactly.

    Byte 0, which text cannot contain, ends a document. It stays a token of its own, for no merge is ever learnt with
    it.

    Raises:
        MissingPackage: tokenizers is not installed.
    """

    def __init__(self, spec: BytePairs) -> None:
        require("tokenizers", "the tokenizer 'bpe'", "tokenizers")
        self.spec = spec
        self._learnt: Any = None  # the library's tokenizer
        self._spelling: Sequence[bytes] = ()
        self._end: int | None = None

    @property
    def spelling(self) -> Sequence[bytes]:
        """The merged bytes of each token; empty before any are learnt."""
        return self._spelling

    @property
    def end(self) -> int | None:
        """The token of byte 0; None before any are learnt."""
        return self._end

    def train(self, documents: Iterable[bytes]) -> None:
        """Learns up to ``vocab`` tokens; fewer if the text has no more pairs to merge."""
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers  # loaded for byte pairs alone

        learnt = Tokenizer(models.BPE())
        learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=self.spec.vocab,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        learnt.train_from_iterator((chunk for d in documents for chunk in chunks(d)), trainer)
        self.load_state({"bpe": learnt.to_str()})

    def encode(self, text: str) -> Tensor:
        """Merged bytes, int64.

        Raises:
            MoekitError: byte pairs are neither learnt nor loaded yet.
        """
        valid = text.encode("utf-8", errors="replace").decode("utf-8")
        return torch.tensor(self._known().encode(valid, add_special_tokens=False).ids, dtype=torch.int64)

    def decode(self, ids: Tensor) -> str:
        """Tokens as text.

        Raises:
            MoekitError: byte pairs are neither learnt nor loaded yet.
        """
        self._known()
        return super().decode(ids)

    def stream(self, documents: Iterable[bytes]) -> Tensor:
        """Merged bytes, int32.

        Raises:
            MoekitError: byte pairs are neither learnt nor loaded yet.
        """
        streams, learnt = [torch.zeros(0, dtype=torch.int32)], self._known()
        end = torch.tensor([self._end], dtype=torch.int32)
        for document in documents:
            parts = learnt.encode_batch_fast(list(chunks(document)), add_special_tokens=False)
            streams += [*(torch.tensor(part.ids, dtype=torch.int32) for part in parts), end]
        return torch.cat(streams)

    def describe(self) -> str:
        """How many byte pairs."""
        return f"{len(self._spelling):,} byte pairs"

    def state(self) -> dict[str, Any]:
        """The learnt byte pairs as JSON text under ``bpe``; empty before any are learnt."""
        return {} if self._learnt is None else {"bpe": self._learnt.to_str()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores byte pairs.

        Raises:
            DataError: the state does not hold a byte-level tokenizer.
        """
        if "bpe" not in state:
            self._learnt, self._spelling, self._end = None, (), None
            return
        from tokenizers import Tokenizer

        try:
            learnt = Tokenizer.from_str(state["bpe"])
            letters = [learnt.id_to_token(i) or "" for i in range(learnt.get_vocab_size())]
            byte_of = _byte_of_letter()
            spelling = [bytes(byte_of[letter] for letter in piece) for piece in letters]
            self._end = spelling.index(END)
        except Exception as error:  # the library raises bare Exceptions
            raise DataError(f"not a byte-pair tokenizer that moekit wrote: {type(error).__name__}: {error}") from error
        self._learnt, self._spelling = learnt, tuple(piece if piece != END else b"" for piece in spelling)

    def _known(self) -> Any:
        if self._learnt is None:
            raise MoekitError("no byte pairs are known yet: call prepare() or load_state() of the data first")
        return self._learnt


def chunks(document: bytes, size: int = 1 << 16) -> Iterator[str]:
    """A UTF-8 document in chunks of about ``size`` bytes that end with a line, so that memory stays bounded."""
    start = 0
    while start < len(document):
        end = document.find(b"\n", start + size) + 1 or len(document)
        yield document[start:end].decode("utf-8")
        start = end


def _byte_of_letter() -> dict[str, int]:
    """The byte that each letter of byte-level BPE stands for.

    The library writes printable Latin-1 bytes as themselves, and the other bytes, in order, as letters from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(hidden)}
