"""Hierarchical noisy top-k routing as loops over tokens, groups and experts, from the equations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Routed:
    """``chosen[t]``: numbers among all E of token t's experts, group by group, best first; ``gate_TK`` in that order.

    ``load_E`` is the smooth load, None without noise.
    """

    chosen: list[list[int]]
    gate_TK: Tensor
    scores_TE: Tensor
    load_E: Tensor | None


@dataclass(frozen=True)
class Gate:
    """One noisy top-k gate on one token: choice, gates, and each element's probability of being chosen."""

    chosen: list[int]
    gates: list[Tensor]
    chances: list[Tensor]
    clean: list[Tensor]


def softmax(z: Sequence[Tensor]) -> list[Tensor]:
    """``exp(z_i) / sum_j exp(z_j)``."""
    largest = max(z_i.item() for z_i in z)
    odds = [torch.exp(z_i - largest) for z_i in z]
    return [odd / sum(odds[1:], odds[0]) for odd in odds]


def best(keys: Sequence[float], k: int) -> list[int]:
    """Indices of the k largest keys, largest first; the lower index wins a tie."""
    return sorted(range(len(keys)), key=lambda i: (-keys[i], i))[:k]


def noisy_gate(x_D: Tensor, w_XD: Tensor, w_noise_XD: Tensor, k: int, epsilon: float, noise: Tensor | None) -> Gate:
    """``H_i = z_i + n_i (softplus(W_noise x)_i + epsilon)``; the softmax over the k largest H; and their chances."""
    z = [(w_D * x_D).sum() for w_D in w_XD]
    if noise is None:
        picks = best([z_i.item() for z_i in z], k)
        return Gate(picks, softmax([z[i] for i in picks]), [], z)
    raw = [(w_D * x_D).sum() for w_D in w_noise_XD]
    std = [torch.logaddexp(r, torch.zeros_like(r)) + epsilon for r in raw]
    noisy = [z[i] + noise[i] * std[i] for i in range(len(z))]
    picks = best([h.item() for h in noisy], k)
    chances = []
    for i in range(len(z)):
        others = [h for j, h in enumerate(noisy) if j != i]
        if len(others) < k:
            chances.append(torch.ones_like(z[i]))
        else:
            kth = others[best([h.item() for h in others], k)[-1]]
            chances.append((1 + torch.erf((z[i] - kth) / std[i] / math.sqrt(2))) / 2)
    return Gate(picks, softmax([noisy[i] for i in picks]), chances, z)


def route(
    x_TD: Tensor,
    group_weight_GD: Tensor,
    group_noise_weight_GD: Tensor,
    weight_ED: Tensor,
    noise_weight_ED: Tensor,
    *,
    top_groups: int,
    top_k: int,
    epsilon: float = 0.0,
    noise_TG: Tensor | None = None,
    noise_TKX: Tensor | None = None,
    valid: Sequence[bool] | None = None,
) -> Routed:
    """Routes each token on its own.

    ``noise_TG`` and ``noise_TKX`` hold the normal noise of training: for each group; and for the experts of each chosen
    group, in order of choice. None in evaluation.
    """
    T, a, b = x_TD.shape[0], group_weight_GD.shape[0], weight_ED.shape[0] // group_weight_GD.shape[0]
    chosen, gates, scores = [], [], []
    prim_load = [weight_ED.new_zeros(()) for _ in range(a)]
    sec_chances: list[list[list[Tensor]]] = [[] for _ in range(a)]  # by group, of each token that chose it
    for t in range(T):
        counts = valid is None or valid[t]
        noise_G = None if noise_TG is None else noise_TG[t]
        prim = noisy_gate(x_TD[t], group_weight_GD, group_noise_weight_GD, top_groups, epsilon, noise_G)
        if counts and prim.chances:
            prim_load = [prim_load[i] + prim.chances[i] for i in range(a)]
        picks, weights = [], []
        for rank, (i, g_prim) in enumerate(zip(prim.chosen, prim.gates, strict=True)):
            w_XD, w_noise_XD = weight_ED[i * b : (i + 1) * b], noise_weight_ED[i * b : (i + 1) * b]
            noise_X = None if noise_TKX is None else noise_TKX[t, rank]
            sec = noisy_gate(x_TD[t], w_XD, w_noise_XD, top_k, epsilon, noise_X)
            if counts and sec.chances:
                sec_chances[i].append(sec.chances)
            picks += [i * b + j for j in sec.chosen]
            weights += [g_prim * g for g in sec.gates]
        chosen.append(picks)
        gates.append(torch.stack(weights))
        p = softmax(prim.clean)
        s = [softmax([(w_D * x_TD[t]).sum() for w_D in weight_ED[i * b : (i + 1) * b]]) for i in range(a)]
        scores.append(torch.stack([p[i] * s[i][j] for i in range(a) for j in range(b)]))
    load_E = None
    if noise_TG is not None:
        load = []
        for i in range(a):
            for j in range(b):
                of_j = [chances[j] for chances in sec_chances[i]]
                mean = sum(of_j[1:], of_j[0]) / len(of_j) if of_j else top_k / b
                load.append(prim_load[i] * mean)
        load_E = torch.stack(load)
    if not chosen:
        return Routed([], x_TD.new_zeros(0, top_groups * top_k), x_TD.new_zeros(0, a * b), load_E)
    return Routed(chosen, torch.stack(gates), torch.stack(scores), load_E)
