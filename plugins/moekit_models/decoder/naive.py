"""Reference implementation of the decoder's wiring: one text, one position at a time, with the paper's indices.

Positions are counted from 1, as in the paper: the input is ``t_1 .. t_T``, and key j holds the prediction for j.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Attend = Callable[[str, Tensor], Tensor]
Feed = Callable[[str, Tensor], Tensor]


def predict(
    tokens: Sequence[int], w: Mapping[str, Tensor], attend: Attend, feed: Feed, *, depth: int, ahead: int, eps: float
) -> list[dict[int, Tensor]]:
    """Logits by predicted position: entry 0 from the main model, entry k from the k-th module ahead (eqs 21 to 23).

    Args:
        tokens: ``t_1 .. t_T``.
        w: weights by the module's ``state_dict`` names.
        attend: ``(name of an attention, x_SD) -> y_SD``.
        feed: ``(name of a feed-forward part, x_D) -> y_D``, for one token.
        depth: layers of the main model.
        ahead: modules of multi-token prediction.
        eps: added inside the norms' square root.
    """
    T = len(tokens)
    emb = {i: w["embedding.weight"][token] for i, token in enumerate(tokens, start=1)}
    out_head = w["head.weight"] if "head.weight" in w else w["embedding.weight"]
    h = dict(emb)
    for layer in range(depth):
        h = block(f"blocks.{layer}", h, w, attend, feed, eps)
    predicted = [{i + 1: out_head @ norm(h[i], w["norm.weight"], eps) for i in h}]
    for k in range(1, ahead + 1):
        name = f"mtp.{k - 1}"
        merged = {}
        for i in range(1, T - k + 1):
            past = norm(h[i], w[f"{name}.hidden_norm.weight"], eps)
            token = norm(emb[i + k], w[f"{name}.token_norm.weight"], eps)
            merged[i] = w[f"{name}.merge.weight"] @ torch.cat([past, token])
        h = block(f"{name}.block", merged, w, attend, feed, eps)
        predicted.append({i + k + 1: out_head @ norm(h[i], w[f"{name}.norm.weight"], eps) for i in h})
    return predicted


def block(
    name: str, x: Mapping[int, Tensor], w: Mapping[str, Tensor], attend: Attend, feed: Feed, eps: float
) -> dict[int, Tensor]:
    """One pre-norm block over a text."""
    normed = [norm(x[i], w[f"{name}.attention_norm.weight"], eps) for i in sorted(x)]
    attended = attend(f"{name}.attention", torch.stack(normed))
    out = {}
    for row, i in enumerate(sorted(x)):
        u = x[i] + attended[row]
        out[i] = u + feed(f"{name}.ffn", norm(u, w[f"{name}.ffn_norm.weight"], eps))
    return out


def norm(u: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm."""
    return u / torch.sqrt((u * u).mean() + eps) * weight
