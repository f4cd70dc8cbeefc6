"""Grouped-query attention, on ``F.scaled_dot_product_attention``. Reference implementation: ``naive.py``."""

from __future__ import annotations

from typing import cast, final

import torch.nn.functional as F
from torch import Tensor, nn

from moekit.contracts import Cache
from moekit_models.blocks import RMSNorm, mask, mask_of_new, positions_before
from moekit_models.gqa import GQA
from moekit_models.rotary import rotate, score_scale, turns


@final
class GroupedQueryAttention(nn.Module):
    """Softmax attention, scale ``1/sqrt(head_dim)`` (times YaRN's factor, if it is on), no biases."""

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
        """``x_BSD -> y_BSD``; no other position attends to padding.

        A cache keeps each position's rotated keys and values: two vectors for each key head.
        """
        spec, start = self.spec, positions_before(cache, self.causal)
        by = turns(x_BSD, spec.head_dim, spec.rope_theta, spec.yarn, start)
        # [B, S, heads, head_dim]: rotated in this layout; heads move before positions afterwards.
        q, k, v = (project(x_BSD).unflatten(-1, (-1, spec.head_dim)) for project in (self.q, self.k, self.v))
        q = rotate(self.q_norm(q), by.of_heads(spec.heads)).transpose(1, 2)
        k = rotate(self.k_norm(k), by.of_heads(self.kv_heads)).transpose(1, 2)
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.extend(k, v)
        visible = mask_of_new(q.shape[-2], start, q.device) if start else mask(self.causal, valid_BS)
        shared, scale = self.kv_heads != spec.heads, score_scale(spec.head_dim, spec.yarn)
        y = F.scaled_dot_product_attention(q, k, v, **visible, scale=scale, enable_gqa=shared)
        return cast(Tensor, self.out(y.transpose(1, 2).flatten(-2)))
