"""Text to tokens by the ``tokenizers`` library, and the bytes that each token spells."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from moekit.contracts import Tokenizer
from moekit.errors import DataError, MoekitError
from moekit.extras import require
from moekit.files import read_regular
from moekit_hf.folder import LARGEST_JSON
from moekit_hf.tokenizer import TokenizerFile

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
SPACE = "\u2581"  # what SentencePiece writes for a space


@final
class FileTokenizer(Tokenizer):
    """Byte-level BPE, BPE with byte fallback (SentencePiece), Unigram, WordPiece: as the file says.

    Text is encoded without special tokens; those that the file puts before one are ``begin``. What a token spells is
    exact for byte-level BPE. For SentencePiece it is too, but for the space that some files put before a text. For
    whole words and WordPiece it is not known: no token spells a space or an unknown word.
    """

    def __init__(self, spec: TokenizerFile) -> None:
        self.spec = spec
        self._text = ""
        self._known: Any = None  # the library's tokenizer
        self._spelling: Sequence[bytes] = ()
        self._end: int | None = None
        self._begin: Sequence[int] = ()
        self._counts_bytes = True

    @property
    def spelling(self) -> Sequence[bytes]:
        """The bytes of each token; none for special tokens."""
        return self._spelling

    @property
    def end(self) -> int | None:
        """The token of ``spec.end``."""
        return self._end

    @property
    def begin(self) -> Sequence[int]:
        """The special tokens that the file's post-processor puts before a text, such as <s>."""
        return self._begin

    @property
    def stops(self) -> Sequence[int]:
        """The tokens of ``spec.stops``."""
        return self.spec.stops

    def num_bytes_V(self) -> Tensor | None:
        """Bytes of each token; None for whole words and WordPiece, whose tokens spell no spaces."""
        return super().num_bytes_V() if self._counts_bytes else None

    def train(self, documents: Iterable[bytes]) -> None:
        """Reads the file, unless a checkpoint brought its text; nothing is learnt from the documents.

        Raises:
            DataError: there is no file, or it cannot be read.
        """
        if self._known is not None:
            return
        if not self.spec.file:
            raise DataError("no checkpoint brings a tokenizer: set data.tokenizer.file to a tokenizer.json")
        try:
            text = read_regular(Path(self.spec.file), LARGEST_JSON).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise DataError(f"cannot read the tokenizer {self.spec.file}: {why}") from error
        self.load_state({"tokenizer_json": text})

    def encode(self, text: str) -> Tensor:
        """Text as tokens, int64 ``[S]``, without special tokens.

        Raises:
            MoekitError: no tokenizer was read.
        """
        valid = text.encode("utf-8", errors="replace").decode("utf-8")
        return torch.tensor(self._ready().encode(valid, add_special_tokens=False).ids, dtype=torch.int64)

    def decode(self, ids: Tensor) -> str:
        """Tokens as text; special tokens, and numbers that are no token, spell nothing."""
        known = self._ready()
        kept = [i for i in ids.tolist() if 0 <= i < len(self._spelling)]
        return str(known.decode(kept, skip_special_tokens=True))

    def describe(self) -> str:
        """How many tokens, and of which kind."""
        return f"{len(self.spelling):,} tokens of {self.spec.file or 'the imported tokenizer'}"

    def state(self) -> dict[str, Any]:
        """The text of the file."""
        return {"tokenizer_json": self._text} if self._text else {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Reads the text of a file.

        Raises:
            MissingPackage: tokenizers is not installed.
            DataError: the library cannot read it, or it has more tokens than ``vocab``, or lacks ``spec.end``.
        """
        if not state:
            return
        if not isinstance(state.get("tokenizer_json"), str):
            raise DataError("the saved tokens are not those of a tokenizer.json, but of another tokenizer")
        require("tokenizers", "a tokenizer.json", "tokenizers")
        from tokenizers import Tokenizer as Library  # loaded for these tokens alone

        try:
            known = Library.from_str(state["tokenizer_json"])
        except Exception as error:  # the library raises bare Exceptions
            raise DataError(f"not a tokenizer.json: {error}") from error
        known.no_truncation()  # of some other use, as is padding
        known.no_padding()
        size = max(known.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if size > self.spec.vocab:
            raise DataError(f"the tokenizer has {size} tokens, more than vocab={self.spec.vocab}")
        self._end = known.token_to_id(self.spec.end) if self.spec.end else None
        if self.spec.end and self._end is None:
            raise DataError(f"the tokenizer has no token '{self.spec.end}', which is to end documents")
        special = {i for i, token in known.get_added_tokens_decoder().items() if token.special}
        pieces = [known.id_to_token(i) for i in range(size)]
        spell = _spell_bytes if '"ByteLevel"' in state["tokenizer_json"] else _spell_text
        added = {i: token.content for i, token in known.get_added_tokens_decoder().items()}
        self._spelling = tuple(
            b"" if piece is None or i in special else added[i].encode() if i in added else spell(piece)
            for i, piece in enumerate(pieces)
        )
        self._begin = _begin(known)
        self._counts_bytes = type(known.model).__name__ not in ("WordPiece", "WordLevel")
        self._known, self._text = known, state["tokenizer_json"]

    def _ready(self) -> Any:
        if self._known is None:
            raise MoekitError("no tokenizer was read yet: call prepare() or load_state() of the data first")
        return self._known


def _begin(known: Any) -> Sequence[int]:
    """The tokens that are put before a text. An end that is put after one is not of a prompt."""
    found = known.encode("a")
    if all(found.special_tokens_mask):  # a text without tokens would not tell what is before it
        return ()
    return tuple(found.ids[: found.special_tokens_mask.index(0)])


def _spell_text(piece: str) -> bytes:
    if match := BYTE.fullmatch(piece):
        return bytes([int(match[1], 16)])
    return piece.replace(SPACE, " ").encode()


def _spell_bytes(piece: str) -> bytes:
    """Byte-level BPE writes printable Latin-1 bytes as themselves, the other bytes, in order, as U+0100 and so on."""
    return bytes(_BYTE_OF[letter] for letter in piece if letter in _BYTE_OF)


_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [b for b in range(256) if b not in _PRINTABLE]
_BYTE_OF = {chr(b): b for b in _PRINTABLE} | {chr(0x100 + i): b for i, b in enumerate(_HIDDEN)}
