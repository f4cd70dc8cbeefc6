"""Comparison of fast code with its reference: values, and gradients of all leaves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def assert_agree(
    fast: Tensor,
    slow: Tensor,
    leaves: Mapping[str, Tensor],
    *,
    rtol: float = 1e-10,
    atol: float = 1e-11,
    looser: float = 10,
) -> None:
    """Fails unless values agree, and gradients of a random weighted sum, to tolerances ``looser`` times as large."""
    torch.testing.assert_close(fast, slow, rtol=rtol, atol=atol)
    upstream = torch.randn_like(fast)
    grads = [
        torch.autograd.grad(
            y, list(leaves.values()), upstream, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        if y.requires_grad
        else [torch.zeros_like(leaf) for leaf in leaves.values()]
        for y in (fast, slow)
    ]
    for name, a, b in zip(leaves, *grads, strict=True):
        torch.testing.assert_close(
            a, b, rtol=looser * rtol, atol=looser * atol, msg=lambda text, name=name: f"gradient of {name}: {text}"
        )


def spread(module: nn.Module) -> nn.Module:
    """Random weights in fp64: norms away from 1, and matrices so large that scores differ clearly."""
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5) if parameter.ndim == 1 else nn.init.normal_(parameter, std=0.7)
    return module.double()
