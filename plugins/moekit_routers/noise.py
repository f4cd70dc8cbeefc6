"""Noise on logits, and each element's probability to be among the k largest under it: shared by noisy routers.

Source: Shazeer et al. 2017, section 2.1 (the gate) and appendix A (the smooth load). Elements are chosen along the last
dimension; there may be any number before it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit.router_math import first_top_k

MIN_STD = 1e-10  # the least standard deviation, because it is divided by and a softplus may be 0


def noise_std(raw_TX: Tensor, epsilon: float) -> Tensor:
    """``softplus(W_noise x) + epsilon``, at least ``MIN_STD``."""
    # By default torch's softplus is the identity above 20, with an error of 2e-9; above 40 it is exact in fp64.
    return (F.softplus(raw_TX, threshold=40) + epsilon).clamp(min=MIN_STD)


def noisy_top_k(
    clean_TX: Tensor, raw_TX: Tensor | None, k: int, epsilon: float, bias_X: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One noisy top-k gate: ``best_TK``, ``gate_TK``, and ``chance_in_top_k`` of every element (None without noise).

    ``H = z + n · std`` with new standard normal n for every element; gates are the softmax over the k largest H.

    Args:
        clean_TX: logits z.
        raw_TX: ``W_noise x``, from which ``noise_std`` follows; None without noise (H = z).
        k: how many of X are chosen.
        epsilon: added to the standard deviation.
        bias_X: added to H and z for the choice alone; without gradient.
    """
    if bias_X is None:
        bias_X = clean_TX.new_zeros(())
    noisy_TX, std_TX = clean_TX, None
    if raw_TX is not None:
        std_TX = noise_std(raw_TX, epsilon)
        noisy_TX = clean_TX + torch.randn_like(clean_TX) * std_TX
    best_TK = first_top_k(noisy_TX.detach() + bias_X, min(k + 1, clean_TX.shape[-1]))  # and the runner-up
    chance_TX = None
    if std_TX is not None:
        chance_TX = chance_in_top_k(clean_TX + bias_X, noisy_TX + bias_X, std_TX, best_TK, k)
    best_TK = best_TK[..., :k]
    return best_TK, noisy_TX.gather(-1, best_TK).softmax(-1), chance_TX


def chance_in_top_k(clean_TX: Tensor, noisy_TX: Tensor, std_TX: Tensor, best_TK: Tensor, k: int) -> Tensor:
    """``P_TX``: each element's probability to be among the k largest if its own noise were sampled once more.

    ``P(x, e) = Phi((z_e - kth_excluding(H, k, e)) / std_e)``, where ``kth_excluding`` is the k-th largest of the other
    elements' noisy values: the (k + 1)-th largest of all for one of the k largest, the k-th for any other.

    Differentiable in all three, also through the threshold; the choice is not.

    Args:
        clean_TX: logits without noise, plus the selection bias if there is one.
        noisy_TX: the same with noise.
        std_TX: the standard deviation of each element's noise, above 0.
        best_TK: int64, the k + 1 largest by ``noisy_TX``, largest first; more are not read.
        k: how many of X are chosen. If all, every probability is 1.
    """
    if k >= clean_TX.shape[-1]:
        return torch.ones_like(clean_TX)
    kth_T1, next_T1 = (noisy_TX.gather(-1, best_TK[..., i : i + 1]) for i in (k - 1, k))
    chosen_TX = torch.zeros_like(noisy_TX, dtype=torch.bool).scatter(-1, best_TK[..., :k], True)
    above_TX = clean_TX - torch.where(chosen_TX, next_T1, kth_T1)
    # Beyond 64 standard deviations Phi is exactly 0 or 1 in fp64; the clamp avoids NaN gradients for a banned expert.
    far_TX = 64 * std_TX.detach()
    above_TX = above_TX.clamp(-far_TX, far_TX)
    return 0.5 * torch.erfc(-above_TX / std_TX / math.sqrt(2))
