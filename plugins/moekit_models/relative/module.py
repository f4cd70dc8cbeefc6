"""Attention with relative position biases, on ``F.scaled_dot_product_attention``. Reference: ``naive.py``."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.contracts import Cache, Table
from moekit.products import Linear
from moekit_models.blocks import mask, positions_before
from moekit_models.relative import Relative


@final
class RelativeAttention(nn.Module):
    """Softmax attention over ``scale · q·k + bias[bucket(distance)]``, no other biases.

    Under ``shared`` it has no table, and its stack gives it the biases.
    """

    def __init__(self, spec: Relative, dim: int, causal: bool = True) -> None:
        super().__init__()
        self.spec = spec
        self.causal = causal
        width = spec.heads * spec.head_dim
        self.q = Linear(dim, width, bias=False)
        self.k = Linear(dim, width, bias=False)
        self.v = Linear(dim, width, bias=False)
        self.out = Linear(width, dim, bias=False)
        self.bias = None if spec.shared else table_of(spec)
        self.starts = starts_of(spec, causal)

    def forward(
        self,
        x_BSD: Tensor,
        *,
        valid_BS: Tensor | None = None,
        document_BS: Tensor | None = None,
        cache: Cache | None = None,
        shared_bias: Tensor | None = None,
    ) -> Tensor:
        """``x_BSD -> y_BSD``; no other position attends to padding, or to another document.

        Positions are relative, so that those of a document need no new start.

        A cache keeps each position's keys and values: two vectors for each head. ``shared_bias`` is what
        ``RelativePositions`` returns, for an attention without a table.
        """
        start = positions_before(cache, self.causal)
        # Heads are before positions from here on: [B, heads, S, head_dim].
        q, k, v = (w(x_BSD).unflatten(-1, (self.spec.heads, -1)).transpose(1, 2) for w in (self.q, self.k, self.v))
        if cache is not None:
            k, v = cache.extend(k, v)
        if self.bias is not None:
            shared_bias = position_bias(self.bias, self.starts, x_BSD.shape[1], start, both=not self.causal)
        assert shared_bias is not None, "shared relative positions without a stack that holds them"
        bias = shared_bias.to(q.dtype)
        if document_BS is not None:
            bias = bias.masked_fill(~mask(self.causal, valid_BS, document_BS)["attn_mask"], -torch.inf)
        elif self.causal:
            later_SS = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).triu(start + 1)
            bias = bias.masked_fill(later_SS, -torch.inf)
        elif (visible := mask(False, valid_BS).get("attn_mask")) is not None:
            bias = bias.masked_fill(~visible, -torch.inf)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.spec.scale)
        return cast(Tensor, self.out(y.transpose(1, 2).flatten(-2)))


class RelativePositions(nn.Module):
    """A table of biases that the layers of a stack share."""

    def __init__(self, spec: Relative, causal: bool = True) -> None:
        super().__init__()
        self.causal = causal
        self.bias = table_of(spec)
        self.starts = starts_of(spec, causal)

    def forward(self, S: int, start: int = 0) -> Tensor:
        """As ``position_bias``."""
        return position_bias(self.bias, self.starts, S, start, both=not self.causal)


def table_of(spec: Relative) -> Table:
    """A learned number for each bucket and head."""
    return Table(spec.buckets, spec.heads, inputs=(spec.buckets + spec.heads) / 2)


def starts_of(spec: Relative, causal: bool) -> list[int]:
    """The ``starts`` of one side's buckets."""
    return starts(spec.buckets if causal else spec.buckets // 2, spec.max_distance)


def position_bias(table: Table, starts: Sequence[int], S: int, start: int, *, both: bool) -> Tensor:
    """``[1, heads, S, start + S]``: the bias of the score of a query (third dimension) for a key (fourth).

    The queries are the last S positions; ``start`` others precede them. ``both``: as of ``bucket_of``.
    """
    key_S = torch.arange(start + S, device=table.weight.device)
    distance_X = torch.arange(1 - start - S, S, device=key_S.device)  # of a key from its query
    table_X = table(bucket_of(distance_X, starts, both=both))
    bias_SSX = table_X[key_S - key_S[start:, None] + start + S - 1]
    return cast(Tensor, bias_SSX.permute(2, 0, 1)[None])


def bucket_of(distance_X: Tensor, starts: Sequence[int], *, both: bool) -> Tensor:
    """int64: the bucket of each signed distance of a key from its query.

    With ``both`` sides, later keys have the upper half of the buckets.

    Args:
        distance_X: position of the key minus that of its query; later keys are at distance 0 unless ``both``.
        starts: the smallest distance of each of one side's buckets; the first half of them are 0, 1, 2, ...
        both: whether queries attend to later keys.
    """
    n_X = distance_X.abs() if both else (-distance_X).clamp(min=0)
    exact = len(starts) // 2
    bucket_X = n_X.clamp(max=exact)
    for start in starts[exact + 1 :]:
        bucket_X = bucket_X + (n_X >= start)
    return bucket_X + len(starts) * (distance_X > 0) if both else bucket_X


def starts(side: int, max_distance: int) -> list[int]:
    """The smallest distance of each of one side's buckets, by integer arithmetic, so that rounding moves no boundary.

    Of n = ``side`` buckets the first n/2 hold one distance each, 0 to n/2 - 1. The boundaries of the rest are evenly
    spaced in the logarithm: a bucket after the last would start at ``max_distance``. The last holds all beyond it.
    """
    exact = side // 2
    rest = side - exact
    found = list(range(exact))
    for k in range(rest):  # the smallest n with exact · (max_distance / exact)^(k / rest) <= n
        reached = exact ** (rest - k) * max_distance**k
        found.append(bisect_left(range(max_distance), reached, key=lambda n: n**rest))
    return found
