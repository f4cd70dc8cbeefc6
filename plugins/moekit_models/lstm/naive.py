"""Reference implementation of the LSTM model: one text, one time step, one gate of one cell at a time.

Source: Hochreiter and Schmidhuber 1997 with forget gates (Gers et al. 2000), as ``i, f, o = sigmoid(..)``,
``c' = f c + i tanh(..)``, ``h = o tanh(c')``; projection: Sak et al. 2014; the rest: Shazeer et al. 2017, eqs 1, 2, 5
(without noise) and Appendix C.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
State = tuple[list[Tensor], list[Tensor]]


def predict(tokens: Sequence[int], w: Weights, *, top_k: int) -> Tensor:
    """``logits_SV`` of one text, without dropout.

    Args:
        tokens: the text.
        w: weights by the module's ``state_dict`` names.
        top_k: K of the mixture; 0 for a model with one feed-forward net instead.
    """
    dim = w["embedding.weight"].shape[1]
    zero = w["embedding.weight"].new_zeros(())
    cells = w["lower.weight_ih_l0"].shape[0] // 4
    start: State = ([zero] * dim, [zero] * cells)
    states = {"lower": start, "upper": start}
    logits = []
    for token in tokens:
        x = [w["embedding.weight"][token, i] for i in range(dim)]
        for layer in ("lower", "between", "upper"):
            if layer == "between":
                y = mixture(x, w, top_k) if top_k else feed(x, w["ffn.w_up_EHD"][0], w["ffn.w_down_EOH"][0])
                out = [1 / (1 + torch.exp(-y_i)) for y_i in y]
            else:
                out, cell = step(x, states[layer], w, layer)
                states[layer] = (out, cell)
            x = [x_i + out_i for x_i, out_i in zip(x, out, strict=True)]
        logits.append(torch.stack(times(w["head.weight"], x)))
    return torch.stack(logits)


def step(x: list[Tensor], state: State, w: Weights, name: str) -> State:
    """One time step of an LSTM: its output and its cells. Gates are in torch's order: i, f, g, o."""
    h, c = state
    read, back, bias = (w[f"{name}.{part}_l0"] for part in ("weight_ih", "weight_hh", "bias_ih"))
    given, cells = [], []
    for n in range(len(c)):
        pre = []
        for gate in range(4):
            row = gate * len(c) + n
            z = bias[row]
            for i, x_i in enumerate(x):
                z = z + read[row, i] * x_i
            for i, h_i in enumerate(h):
                z = z + back[row, i] * h_i
            pre.append(z)
        enter, forget, leave = (1 / (1 + torch.exp(-pre[gate])) for gate in (0, 1, 3))
        cells.append(forget * c[n] + enter * torch.tanh(pre[2]))
        given.append(leave * torch.tanh(cells[n]))
    if f"{name}.weight_hr_l0" in w:
        given = times(w[f"{name}.weight_hr_l0"], given)
    return given, cells


def mixture(x: list[Tensor], w: Weights, top_k: int) -> list[Tensor]:
    """The sum over the K largest logits of ``softmax over those K``, times the expert of each."""
    z = times(w["moe.router.weight_ED"], x)
    kept = sorted(range(len(z)), key=lambda e: (-z[e].item(), e))[:top_k]
    odds = {e: torch.exp(z[e] - z[kept[0]].detach()) for e in kept}
    y = [torch.zeros_like(x_i) for x_i in x]
    for e in kept:
        gate = odds[e] / sum(odds.values())
        out = feed(x, w["moe.experts.w_up_EHD"][e], w["moe.experts.w_down_EOH"][e])
        y = [y_i + gate * out_i for y_i, out_i in zip(y, out, strict=True)]
    return y


def feed(x: list[Tensor], w_up_HD: Tensor, w_down_DH: Tensor) -> list[Tensor]:
    """``w_down relu(w_up x)``."""
    return times(w_down_DH, [u if u.item() > 0 else 0 * u for u in times(w_up_HD, x)])


def times(w_XX: Tensor, x: list[Tensor]) -> list[Tensor]:
    """A matrix times a vector."""
    out = []
    for row in w_XX:
        total = row[0] * x[0]
        for i in range(1, len(x)):
            total = total + row[i] * x[i]
        out.append(total)
    return out
