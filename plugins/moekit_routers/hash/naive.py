"""Hash routing, token by token."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def route(tokens: Sequence[int], table: Sequence[int]) -> list[int]:
    """The expert of each token."""
    return [table[token] for token in tokens]


def combine(tokens: Sequence[int], table: Sequence[int], outputs: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """``y_t = FFN_e(x_t)`` with ``e = table[id_t]``, without a gate; ``outputs[t][e]`` is ``FFN_e(x_t)``."""
    return [outputs[t][e] for t, e in enumerate(route(tokens, table))]
