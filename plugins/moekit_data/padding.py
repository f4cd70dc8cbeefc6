"""Sequences of different lengths as one padded batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from moekit.contracts import Batch, Source

MULTIPLE = 8
"""Lengths are rounded up to a multiple of this, so that a run has few different shapes."""


def pad(rows: Sequence[Tensor], value: int) -> tuple[Tensor, Tensor]:
    """Rows as one tensor, padded at the end.

    Returns:
        int64 ``[B, S]``, S the longest rounded up to a multiple of 8; bool ``[B, S]``, False for padding.
    """
    lengths = torch.tensor([len(row) for row in rows])
    tokens = pad_sequence(list(rows), batch_first=True, padding_value=value)
    tokens = F.pad(tokens, (0, -tokens.shape[1] % MULTIPLE), value=value)
    return tokens, torch.arange(tokens.shape[1]) < lengths[:, None]


def side_by_side(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    *,
    end: int,
    domain: Tensor | None = None,
    num_bytes_V: Tensor | None = None,
) -> Batch:
    """A batch of pairs. The decoder reads the end and then the target; it predicts the target and then the end.

    Args:
        sources: int64 ``[S]``, one a row.
        targets: int64 ``[S]``, as many, without an end.
        end: the token that ends a target and starts its inputs; padding consists of it too.
        domain: int64 ``[B]``, the domain of each row.
        num_bytes_V: bytes of text that each token spells, 0 for the end; None where that is not known.
    """
    edge = torch.tensor([end])
    inputs, valid = pad([torch.cat([edge, row]) for row in targets], end)
    shifted, _ = pad([torch.cat([row, edge]) for row in targets], end)
    return Batch(
        inputs=inputs,
        targets=shifted,
        valid=valid,
        num_bytes=None if num_bytes_V is None else num_bytes_V[shifted].sum(),
        domain=domain,
        source=Source(*pad(sources, end)),
    )
