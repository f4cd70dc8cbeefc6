"""A token is a byte of UTF-8."""

from __future__ import annotations

from moekit.spec.fields import option
from moekit.spec.kinds import TokenizerSpec


class Bytes(TokenizerSpec):
    """Options of bytes."""

    vocab: int = option(256, "number of tokens: there are 256 bytes", ge=256, le=256)
