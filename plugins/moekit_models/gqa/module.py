"""Grouped-query attention, on ``F.scaled_dot_product_attention``. Oracle: ``naive.py``."""

from __future__ import annotations

from typing import cast, final

import torch.nn.functional as F
from torch import Tensor, nn

from moekit.contracts import Cache
from moekit_models.blocks import RMSNorm, positions_before, sight, sight_of_new
from moekit_models.gqa import GQA
from moekit_models.rotary import rotate, score_scale


@final
class GroupedQueryAttention(nn.Module):
    """Softmax attention, scale ``1/sqrt(head_dim)`` (times YaRN's factor, where it is on), no biases.

    Args:
        spec: its options.
        dim: D, width of the tokens.
        causal: whether a position sees none after it.
    """

    def __init__(self, spec: GQA, dim: int, causal: bool = True) -> None:
        super().__init__()
        self.spec = spec
        self.causal = causal
        self.kv_heads = spec.kv_heads or spec.heads
        self.q = nn.Linear(dim, spec.heads * spec.head_dim, bias=False)
        self.k = nn.Linear(dim, self.kv_heads * spec.head_dim, bias=False)
        self.v = nn.Linear(dim, self.kv_heads * spec.head_dim, bias=False)
        self.out = nn.Linear(spec.heads * spec.head_dim, dim, bias=False)
        self.q_norm = RMSNorm(spec.head_dim, eps=spec.norm_eps) if spec.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(spec.head_dim, eps=spec.norm_eps) if spec.qk_norm else nn.Identity()

    def forward(self, x_BSD: Tensor, *, valid_BS: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """``x_BSD -> y_BSD``; padding is seen by no other position.

        A cache keeps each position's keys, turned, and values: two vectors a key head.
        """
        start = positions_before(cache, self.causal)
        # Heads stand before positions from here on: [B, heads, S, head_dim].
        q = self.q(x_BSD).unflatten(-1, (self.spec.heads, -1)).transpose(1, 2)
        k = self.k(x_BSD).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        v = self.v(x_BSD).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        q = rotate(self.q_norm(q), self.spec.rope_theta, self.spec.yarn, start)
        k = rotate(self.k_norm(k), self.spec.rope_theta, self.spec.yarn, start)
        if cache is not None:
            k, v = cache.extend(k, v)
        seen = sight_of_new(q.shape[-2], start, q.device) if start else sight(self.causal, valid_BS)
        shared, scale = self.kv_heads != self.spec.heads, score_scale(self.spec.head_dim, self.spec.yarn)
        y = F.scaled_dot_product_attention(q, k, v, **seen, scale=scale, enable_gqa=shared)
        return cast(Tensor, self.out(y.transpose(1, 2).flatten(-2)))
