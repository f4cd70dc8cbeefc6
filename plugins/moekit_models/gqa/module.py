"""Grouped-query attention. Reference implementation: ``naive.py``."""

from __future__ import annotations

from typing import cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.contracts import Cache
from moekit.products import Linear
from moekit_models.attending import attention
from moekit_models.blocks import Mask, mask, mask_of_new, positions_before, within, within_chunk
from moekit_models.gqa import GQA, Temperature
from moekit_models.norms import RMSNorm
from moekit_models.rotary import Turns, rotate, score_scale, turns


@final
class GroupedQueryAttention(nn.Module):
    """Softmax attention, scale ``1/sqrt(head_dim)`` (times YaRN's factor, if it is on).

    Sinks, if any, are ``b_sink_X``, one logit for each query head, initially 0.
    """

    def __init__(self, spec: GQA, dim: int, causal: bool = True) -> None:
        super().__init__()
        self.spec = spec
        self.causal = causal
        self.kv_heads = spec.kv_heads or spec.heads
        wide, narrow = spec.heads * spec.head_dim, self.kv_heads * spec.head_dim
        self.q = Linear(dim, wide, bias=spec.bias != "none")
        self.k = Linear(dim, narrow, bias=spec.bias != "none")
        self.v = Linear(dim, narrow, bias=spec.bias != "none")
        self.out = Linear(wide, dim, bias=spec.bias == "all")
        q_size, k_size = (wide, narrow) if spec.norm_over == "all" else (spec.head_dim, spec.head_dim)
        self.q_norm, self.k_norm = (
            RMSNorm(size, eps=spec.norm_eps, elementwise_affine=spec.norm_weight) if spec.qk_norm else nn.Identity()
            for size in (q_size, k_size)
        )
        self.b_sink_X = nn.Parameter(torch.zeros(spec.heads)) if spec.sinks else None

    def forward(
        self,
        x_BSD: Tensor,
        *,
        valid_BS: Tensor | None = None,
        document_BS: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """``x_BSD -> y_BSD``; no other position attends to padding, or to another document.

        Positions are relative, so that those of a document need no new start.

        A cache keeps each position's rotated keys and values: two vectors for each key head.
        """
        spec, start = self.spec, positions_before(cache, self.causal)
        width = spec.head_dim if spec.rotary_dim is None else spec.rotary_dim
        by_q, by_k = (
            turns(x_BSD, width, spec.rope_theta, spec.longer, start, heads) for heads in (spec.heads, self.kv_heads)
        )
        # [B, S, heads, head_dim]: rotated in this layout; heads move before positions afterwards.
        q = self._rotated(self._heads(self.q(x_BSD), self.q_norm), by_q).transpose(1, 2)
        k = self._rotated(self._heads(self.k(x_BSD), self.k_norm), by_k).transpose(1, 2)
        v = self._heads(self.v(x_BSD)).transpose(1, 2)
        if spec.temperature is not None:
            q = q * _growth(spec.temperature, q, start)
        if cache is not None:
            k, v = cache.extend(k, v)
        visible = mask_of_new(q.shape[-2], start, q.device) if start else mask(self.causal, valid_BS, document_BS)
        if spec.window is not None and k.shape[-2] > spec.window:
            visible = within(spec.window, visible, q.shape[-2], k.shape[-2], q.device)
        if spec.chunk is not None and k.shape[-2] > spec.chunk:
            visible = within_chunk(spec.chunk, visible, q.shape[-2], k.shape[-2], q.device)
        if self.b_sink_X is not None:
            k, v, visible = self._with_sinks(q, k, v, visible)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        y = attention(q, k, v, visible, score_scale(spec.head_dim, spec.yarn))
        return cast(Tensor, self.out(y.flatten(-2)))

    def _heads(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        """``[B, S, heads · head_dim] -> [B, S, heads, head_dim]``, normed if there is a norm, and clipped."""
        spec = self.spec
        if norm is not None and spec.norm_over == "all":
            x = norm(x)
        x = x.view(*x.shape[:-1], -1, spec.head_dim)
        if norm is not None and spec.norm_over == "head":
            x = norm(x)
        return x if spec.clip is None else x.clamp(-spec.clip, spec.clip)

    def _rotated(self, x: Tensor, by: Turns) -> Tensor:
        R = self.spec.rotary_dim
        if R == 0:
            return x
        return rotate(x, by) if R is None else torch.cat([rotate(x[..., :R], by), x[..., R:]], dim=-1)

    def _with_sinks(self, q: Tensor, k: Tensor, v: Tensor, visible: Mask) -> tuple[Tensor, Tensor, Mask]:
        """One more key, whose score is each head's sink, and whose value is 0."""
        assert self.b_sink_X is not None
        S, L = q.shape[-2], k.shape[-2]
        seen = visible.get("attn_mask", torch.ones(S, L, dtype=torch.bool, device=q.device))
        if visible.get("is_causal"):
            seen = seen.tril()
        bias = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen, -torch.inf)
        sinks = self.b_sink_X.to(q.dtype)[:, None, None].expand(*bias.shape[:-3], -1, S, 1)
        bias = torch.cat([bias.expand(*bias.shape[:-3], len(self.b_sink_X), S, L), sinks], dim=-1)
        return F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1)), {"attn_mask": bias}


def _growth(temperature: Temperature, q: Tensor, start: int) -> Tensor:
    """``[S, 1]``: the factor of the query of each position from ``start`` on."""
    position_S = torch.arange(start, start + q.shape[-2], device=q.device)
    runs_S = torch.div(position_S + 1, temperature.floor, rounding_mode="floor")
    wide = torch.promote_types(q.dtype, torch.float32)
    return (1 + temperature.scale * runs_S.to(wide).log1p())[:, None].to(q.dtype)
