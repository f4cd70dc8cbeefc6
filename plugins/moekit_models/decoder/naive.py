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
    tokens: Sequence[int],
    w: Mapping[str, Tensor],
    attend: Attend,
    feed: Feed,
    *,
    depth: int,
    ahead: int,
    eps: float,
    norm_at: str = "input",
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
        norm_at: ``input`` or ``output`` of attention and of the feed-forward part.
    """
    T = len(tokens)
    emb = {i: w["embedding.weight"][token] for i, token in enumerate(tokens, start=1)}
    h = dict(emb)
    for layer in range(depth):
        h = block(f"blocks.{layer}", h, w, attend, feed, eps, norm_at)
    predicted = [{i + 1: head(norm(h[i], w, "norm", eps), w) for i in h}]
    for k in range(1, ahead + 1):
        name = f"mtp.{k - 1}"
        merged = {}
        for i in range(1, T - k + 1):
            past = norm(h[i], w, f"{name}.hidden_norm", eps)
            token = norm(emb[i + k], w, f"{name}.token_norm", eps)
            merged[i] = w[f"{name}.merge.weight"] @ torch.cat([past, token])
        h = block(f"{name}.block", merged, w, attend, feed, eps, norm_at)
        predicted.append({i + k + 1: head(norm(h[i], w, f"{name}.norm", eps), w) for i in h})
    return predicted


def block(
    name: str,
    x: Mapping[int, Tensor],
    w: Mapping[str, Tensor],
    attend: Attend,
    feed: Feed,
    eps: float,
    norm_at: str = "input",
) -> dict[int, Tensor]:
    """One block over a text."""
    read = [norm(x[i], w, f"{name}.attention_norm", eps) if norm_at == "input" else x[i] for i in sorted(x)]
    attended = attend(f"{name}.attention", torch.stack(read))
    out = {}
    for row, i in enumerate(sorted(x)):
        if norm_at == "input":
            u = x[i] + attended[row]
            out[i] = u + feed(f"{name}.ffn", norm(u, w, f"{name}.ffn_norm", eps))
        else:
            u = x[i] + norm(attended[row], w, f"{name}.attention_norm", eps)
            out[i] = u + norm(feed(f"{name}.ffn", u), w, f"{name}.ffn_norm", eps)
    return out


def norm(u: Tensor, w: Mapping[str, Tensor], name: str, eps: float) -> Tensor:
    """RMSNorm; LayerNorm, if the norm has a bias."""
    if f"{name}.bias" not in w:
        return u / torch.sqrt((u * u).mean() + eps) * w[f"{name}.weight"]
    u = u - u.mean()
    return u / torch.sqrt((u * u).mean() + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def head(u: Tensor, w: Mapping[str, Tensor]) -> Tensor:
    """Logits, by a matrix of their own or by the input embedding; with a bias, if there is one."""
    y = w.get("head.weight", w["embedding.weight"]) @ u
    return y + w["head.bias"] if "head.bias" in w else y
