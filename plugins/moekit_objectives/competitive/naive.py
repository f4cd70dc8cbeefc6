"""Reference implementation of the errors of 1991: one case at a time, with explicit gradients.

Each function returns ``(E, dE/do, dE/da)`` for gates ``p = softmax(a)``: they test the errors against
their equations without differentiation.
"""

from __future__ import annotations

import torch
from torch import Tensor

Answer = tuple[Tensor, Tensor, Tensor]


def cooperative(d_O: Tensor, o_EO: Tensor, a_E: Tensor) -> Answer:
    """Eq. 1.1. Every expert sees the same residual: ``dE/do_i = -2 p_i (d - sum_j p_j o_j)``."""
    p = torch.exp(a_E) / torch.exp(a_E).sum()
    residual = d_O.clone()
    for i in range(len(p)):
        residual = residual - p[i] * o_EO[i]
    do = torch.stack([-2 * p[i] * residual for i in range(len(p))])
    slope = torch.stack([-2 * residual @ o_EO[i] for i in range(len(p))])
    da = torch.stack([p[i] * (slope[i] - p @ slope) for i in range(len(p))])
    return residual @ residual, do, da


def competitive(d_O: Tensor, o_EO: Tensor, a_E: Tensor) -> Answer:
    """Eq. 1.2 (gradient 1.4). ``dE/do_i = -2 p_i (d - o_i)``, ``dE/da_i = p_i (|d - o_i|² - E)``."""
    p = torch.exp(a_E) / torch.exp(a_E).sum()
    squared = torch.stack([(d_O - o) @ (d_O - o) for o in o_EO])
    E = p @ squared
    do = torch.stack([-2 * p[i] * (d_O - o_EO[i]) for i in range(len(p))])
    da = torch.stack([p[i] * (squared[i] - E) for i in range(len(p))])
    return E, do, da


def likelihood(d_O: Tensor, o_EO: Tensor, a_E: Tensor) -> Answer:
    """Eq. 1.3 (gradient 1.5). ``dE/do_i = -h_i (d - o_i)``, ``dE/da_i = p_i - h_i``, h the posterior shares."""
    p = torch.exp(a_E) / torch.exp(a_E).sum()
    joint = torch.stack([p[i] * torch.exp(-(d_O - o_EO[i]) @ (d_O - o_EO[i]) / 2) for i in range(len(p))])
    h = joint / joint.sum()
    do = torch.stack([-h[i] * (d_O - o_EO[i]) for i in range(len(p))])
    return -torch.log(joint.sum()), do, p - h
