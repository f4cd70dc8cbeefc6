"""Reference implementation of the encoder-decoder's wiring: one pair, one token at a time, without padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Attend = Callable[[str, Tensor], Tensor]
Feed = Callable[[str, Tensor], Tensor]


def predict(
    source: Sequence[int],
    target: Sequence[int],
    w: Mapping[str, Tensor],
    attend: Attend,
    feed: Feed,
    *,
    depths: tuple[int, int],
    cross_heads: int,
    scaled_head: bool,
    eps: float,
    cross_scale: float | None = None,
) -> Tensor:
    """``logits_SV``: at each position of the target, of the token after it.

    Args:
        source: the encoder's tokens.
        target: the decoder's tokens so far, the start token first.
        w: weights by the module's ``state_dict`` names.
        attend: ``(name of a self-attention, x_SD) -> y_SD``, causal or not by its name.
        feed: ``(name of a feed-forward part, x_D) -> y_D``, for one token.
        depths: layers of the encoder and of the decoder.
        cross_heads: heads of the attention to the source.
        scaled_head: whether logits are divided by sqrt(D).
        eps: added inside the norms' square root.
        cross_scale: factor of dot products with the source; None for ``1/sqrt(R)``.
    """
    read = [w.get("source_embedding.weight", w["embedding.weight"])[token] for token in source]
    for layer in range(depths[0]):
        read = attended(f"encoder.blocks.{layer}", read, w, attend, eps)
        read = fed(f"encoder.blocks.{layer}", read, w, feed, eps)
    memory = [norm(x, w["encoder.norm.weight"], eps) for x in read]
    written = [w["embedding.weight"][token] for token in target]
    for layer in range(depths[1]):
        name = f"decoder.blocks.{layer}"
        written = attended(name, written, w, attend, eps)
        looked = []
        for x in written:
            query = norm(x, w[f"{name}.cross_norm.weight"], eps)
            looked.append(x + look(f"{name}.cross_attention", query, memory, w, cross_heads, cross_scale))
        written = fed(name, looked, w, feed, eps)
    out = [norm(x, w["decoder.norm.weight"], eps) for x in written]
    head = w["head.weight"] if "head.weight" in w else w["embedding.weight"]
    return torch.stack([head @ x / (math.sqrt(len(x)) if scaled_head else 1.0) for x in out])


def attended(name: str, x: list[Tensor], w: Mapping[str, Tensor], attend: Attend, eps: float) -> list[Tensor]:
    """``x + attention(norm(x))``."""
    y = attend(f"{name}.attention", torch.stack([norm(u, w[f"{name}.attention_norm.weight"], eps) for u in x]))
    return [u + y[i] for i, u in enumerate(x)]


def fed(name: str, x: list[Tensor], w: Mapping[str, Tensor], feed: Feed, eps: float) -> list[Tensor]:
    """``x + ffn(norm(x))``; then the dense part, if the block has one."""
    out = []
    for u in x:
        u = u + feed(f"{name}.ffn", norm(u, w[f"{name}.ffn_norm.weight"], eps))
        if f"{name}.dense_norm.weight" in w:
            u = u + feed(f"{name}.dense", norm(u, w[f"{name}.dense_norm.weight"], eps))
        out.append(u)
    return out


def look(
    name: str, query: Tensor, memory: Sequence[Tensor], w: Mapping[str, Tensor], heads: int, scale: float | None = None
) -> Tensor:
    """Attention of one token of the target to the whole source, head by head."""
    R = w[f"{name}.q.weight"].shape[0] // heads
    scale = 1 / math.sqrt(R) if scale is None else scale
    parts = []
    for h in range(heads):
        q, k, v = (w[f"{name}.{part}.weight"][h * R : (h + 1) * R] for part in ("q", "k", "v"))
        share = [((q @ query) @ (k @ m) * scale).exp() for m in memory]
        parts.append(sum((s / sum(share) * (v @ m) for s, m in zip(share, memory, strict=True)), 0 * (v @ query)))
    return w[f"{name}.out.weight"] @ torch.cat(parts)


def norm(u: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm."""
    return u / torch.sqrt((u * u).mean() + eps) * weight
