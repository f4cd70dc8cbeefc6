"""Multi-head latent attention: explicit keys and values in training, absorbed ones in decoding.

Reference implementation: ``naive.py``.
"""

from __future__ import annotations

from typing import cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.contracts import Cache
from moekit.products import Linear
from moekit_models.attending import attention
from moekit_models.blocks import mask, mask_of_new, positions_before
from moekit_models.mla import MLA
from moekit_models.norms import RMSNorm
from moekit_models.rotary import rotate, score_scale, turns


@final
class MultiHeadLatentAttention(nn.Module):
    """Softmax attention over latents, scale ``1/sqrt(nope_dim + rope_dim)`` (times YaRN's factor, if on), no biases.

    Projections of one input are stacked in one matrix: ``q_up`` holds each head's ``[W_UQ; W_QR]``, ``kv_down``
    holds ``[W_DKV; W_KR]``, ``kv_up`` each head's ``[W_UK; W_UV]``.
    """

    def __init__(self, spec: MLA, dim: int, causal: bool = True) -> None:
        super().__init__()
        self.spec = spec
        self.causal = causal
        head_dim = spec.nope_dim + spec.rope_dim
        self.q_down = None if spec.query_rank is None else Linear(dim, spec.query_rank, bias=False)
        self.q_norm = None if spec.query_rank is None else RMSNorm(spec.query_rank, eps=spec.norm_eps)
        self.q_up = Linear(spec.query_rank or dim, spec.heads * head_dim, bias=False)
        self.kv_down = Linear(dim, spec.kv_rank + spec.rope_dim, bias=False)
        self.kv_norm = RMSNorm(spec.kv_rank, eps=spec.norm_eps)
        self.kv_up = Linear(spec.kv_rank, spec.heads * (spec.nope_dim + spec.value_dim), bias=False)
        self.out = Linear(spec.heads * spec.value_dim, dim, bias=False)

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

        A cache keeps the normed latent and the rotated rotary key of each position: ``kv_rank + rope_dim`` numbers.
        With it, keys and values are no longer computed: W_UK is applied to the queries, W_UV to the output
        (DeepSeek-V2, section 2.1.2).
        """
        s, start = self.spec, positions_before(cache, self.causal)
        by = turns(x_BSD, s.rope_dim, s.rope_theta, s.yarn, start)
        latent_q = x_BSD if self.q_down is None or self.q_norm is None else self.q_norm(self.q_down(x_BSD))
        latent_kv, k_rope = self.kv_down(x_BSD).split_with_sizes([s.kv_rank, s.rope_dim], dim=-1)
        latent_kv, k_rope = self.kv_norm(latent_kv), rotate(k_rope, by)
        # [B, S, heads, ...]: parts are concatenated in this layout; heads move before positions afterwards.
        q = self.q_up(latent_q).unflatten(-1, (s.heads, -1))
        q_nope, q_rope = q.split_with_sizes([s.nope_dim, s.rope_dim], dim=-1)
        scale = score_scale(q.shape[-1], s.yarn) or q.shape[-1] ** -0.5
        if cache is not None:
            (known,) = cache.extend(torch.cat([latent_kv, k_rope], dim=-1))
        q_rope = rotate(q_rope, turns(x_BSD, s.rope_dim, s.rope_theta, s.yarn, start, s.heads))
        if cache is not None and start:
            y = self._absorbed(q_nope, q_rope, known, scale)
        else:
            q = torch.cat([q_nope, q_rope], dim=-1)
            k_nope, v = self.kv_up(latent_kv).unflatten(-1, (s.heads, -1)).split([s.nope_dim, s.value_dim], dim=-1)
            k = torch.cat([k_nope, k_rope[:, :, None].expand(-1, -1, s.heads, -1)], dim=-1)
            y = attention(q, k, v, mask(self.causal, valid_BS, document_BS), scale).transpose(1, 2)
        return cast(Tensor, self.out(y.transpose(1, 2).flatten(-2)))

    def _absorbed(self, q_nope: Tensor, q_rope: Tensor, known: Tensor, scale: float) -> Tensor:
        """Values of each head for S new positions, from the cached rows of all: latents and rotary keys.

        All heads attend to the same rows, so they are queries of one head: ``[B, 1, heads · S, kv_rank + rope_dim]``.
        """
        s, (B, S) = self.spec, q_nope.shape[:2]
        w_kv = self.kv_up.weight.reshape(s.heads, s.nope_dim + s.value_dim, s.kv_rank)
        w_uk, w_uv = w_kv.split_with_sizes([s.nope_dim, s.value_dim], dim=1)
        # One product for each head, over all sequences: a product with broadcast weights would copy them B times.
        q_nope = torch.bmm(q_nope.flatten(0, 1).transpose(0, 1), w_uk).view(s.heads, B, S, s.kv_rank)
        q = torch.cat([q_nope.transpose(0, 1), q_rope.transpose(1, 2)], dim=-1).view(B, 1, s.heads * S, -1)
        visible = mask_of_new(S, known.shape[-2] - S, q.device)
        if "attn_mask" in visible:
            visible["attn_mask"] = visible["attn_mask"].repeat(s.heads, 1)
        # The average includes the rotary keys: removing them first would copy all latents.
        mean = F.scaled_dot_product_attention(q, known[:, None], known[:, None], **visible, scale=scale)
        mean = mean[..., : s.kv_rank].reshape(B, s.heads, S, -1).transpose(0, 1).reshape(s.heads, B * S, -1)
        return torch.bmm(mean, w_uv.mT).view(s.heads, B, S, -1).transpose(0, 1)
