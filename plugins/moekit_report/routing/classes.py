"""Classes of tokens by what they spell, to see which experts took to which."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CLASSES = ("end", "space", "letters", "digits", "punctuation", "other scripts", "mixed")


def class_of(piece: bytes) -> str:
    """The class of one token: what its bytes are, apart from spaces around them. Empty ones spell an end or a tag."""
    if not piece:
        return "end"
    core = piece.strip()
    if not core:
        return "space"
    if max(core) > 127:
        return "other scripts"
    if core.isalpha():
        return "letters"
    if core.isdigit():
        return "digits"
    return "mixed" if any(bytes([each]).isalnum() for each in core) else "punctuation"


def class_V(spelling: Sequence[bytes]) -> Tensor:
    """int64 ``[V]``: each token's index into ``CLASSES``."""
    return torch.tensor([CLASSES.index(class_of(piece)) for piece in spelling], dtype=torch.int64)
