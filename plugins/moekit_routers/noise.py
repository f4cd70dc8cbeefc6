"""Noise on logits, and the chance of being among the best k under it: what noisy routers have in common.

Source: Shazeer et al. 2017, section 2.1 (the gate) and appendix A (the smooth load). Choices may have any number of
dimensions before the last, over which is chosen.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_STD = 1e-10  # what a standard deviation is at least, so that a softplus that is 0 divides nothing by 0


def noise_std(raw_TX: Tensor, epsilon: float) -> Tensor:
    """``softplus(W_noise x) + epsilon``, at least ``MIN_STD``."""
    # By default torch's softplus is the identity above 20, which is off by 2e-9; above 40 no digit of fp64 is lost.
    return (F.softplus(raw_TX, threshold=40) + epsilon).clamp(min=MIN_STD)


def with_noise(clean_TX: Tensor, std_TX: Tensor) -> Tensor:
    """``H = z + n · std``, n a fresh standard normal draw for every element, in the logits' own dtype."""
    return clean_TX + torch.randn_like(clean_TX) * std_TX


def chance_in_top_k(clean_TX: Tensor, noisy_TX: Tensor, std_TX: Tensor, best_TK: Tensor, k: int) -> Tensor:
    """``P_TX``: how likely each element would be among the k largest if its own noise were drawn once more.

    ``P(x, e) = Phi((z_e - kth_excluding(H, k, e)) / std_e)``, where ``kth_excluding`` is the k-th largest of the other
    elements' noisy values: the (k + 1)-th largest of all for one of the k largest, the k-th for any other.

    Differentiable in all three, through the threshold too; choosing itself is not.

    Args:
        clean_TX: logits without noise, and with the selection bias where one was added for choosing.
        noisy_TX: the same with noise.
        std_TX: the standard deviation of each element's noise, above 0.
        best_TK: int64, the k + 1 largest by ``noisy_TX``, largest first; more are not read.
        k: how many are chosen, of X. If all of them, every chance is 1.
    """
    if k >= clean_TX.shape[-1]:
        return torch.ones_like(clean_TX)
    kth_T1, next_T1 = (noisy_TX.gather(-1, best_TK[..., i : i + 1]) for i in (k - 1, k))
    chosen_TX = torch.zeros_like(noisy_TX, dtype=torch.bool).scatter(-1, best_TK[..., :k], True)
    above_TX = clean_TX - torch.where(chosen_TX, next_T1, kth_T1)
    # Beyond 64 standard deviations Phi is exactly 0 or 1 in fp64; the bound keeps a banned expert's gradient from NaN.
    far_TX = 64 * std_TX.detach()
    above_TX = above_TX.clamp(-far_TX, far_TX)
    return 0.5 * torch.erfc(-above_TX / std_TX / math.sqrt(2))
