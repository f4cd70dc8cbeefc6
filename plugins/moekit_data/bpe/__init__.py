"""Byte pairs, merged as often as the vocabulary allows, most frequent first; learnt from the training text.

Source: Sennrich, Haddow and Birch, "Neural machine translation of rare words with subword units" (2016,
arXiv:1508.07909), algorithm 1, on bytes as in GPT-2.
"""

from __future__ import annotations

from moekit.spec.fields import option
from moekit.spec.kinds import TokenizerSpec


class BytePairs(TokenizerSpec):
    """Options of byte pairs."""

    vocab: int = option(help="number of tokens: 256 bytes and the merges; fewer if the text has no more pairs", gt=256)
