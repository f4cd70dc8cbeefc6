"""Products of fp32 matrices in training on a CPU, by the library that is faster on this processor.

On x86 torch multiplies fp32 matrices with MKL, which uses AVX2 on AMD's processors, also on those that have AVX-512.
oneDNN, which torch contains as well, then takes half of the time: ``docs/benchmarks.md`` has the figures.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.compat import has_onednn, is_eager, onednn_linear
from moekit.machine import processor_name

FROM, ROWS = 1 << 20, 128
"""Multiply-adds of a product, and rows, from which oneDNN is faster: it copies the weight to an order of its own."""


class Linear(nn.Linear):
    """``nn.Linear``, by ``linear``."""

    def forward(self, input: Tensor) -> Tensor:
        """``[..., D] -> [..., H]``."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight_HD: Tensor, bias_H: Tensor | None = None) -> Tensor:
    """``x W^T + b``, as ``F.linear``: ``[..., D] -> [..., H]``."""
    if not by_onednn(x, weight_HD):
        return F.linear(x, weight_HD, bias_H)
    y: Tensor = product(x.reshape(-1, x.shape[-1]), weight_HD).view(*x.shape[:-1], -1)
    return y if bias_H is None else y + bias_H


def by_onednn(x: Tensor, weight_HD: Tensor) -> bool:
    """Whether ``product`` should compute ``x W^T``: decided by static facts, never by values.

    In training alone, whose batches have one shape: oneDNN compiles a kernel for every number of rows.
    """
    return (
        x.numel() >= ROWS * x.shape[-1]
        and x.numel() * weight_HD.shape[0] >= FROM
        and torch.is_grad_enabled()
        and x.dtype == weight_HD.dtype == torch.float32
        and x.device.type == "cpu"
        and is_eager()
        and onednn_is_faster()
        and all(type(t) in (Tensor, nn.Parameter) for t in (x, weight_HD))
    )


@cache
def onednn_is_faster() -> bool:
    """Whether MKL uses narrower vectors than this processor has, and this build of torch has oneDNN."""
    narrower = torch.backends.cpu.get_cpu_capability() == "AVX512" and processor_name().startswith("AMD")
    return narrower and bool(torch.backends.mkl.is_available()) and has_onednn()  # type: ignore[no-untyped-call]


def product(x_ND: Tensor, w_HD: Tensor) -> Tensor:
    """``x w^T`` by oneDNN, ``[N, H]``, of fp32 matrices with any strides on a CPU."""
    run = Product.apply if torch.is_grad_enabled() else onednn_linear
    return cast(Tensor, run(x_ND, w_HD))


class Product(torch.autograd.Function):
    """``x w^T``; differentiable any number of times, since its derivatives are such products."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, w_HD: Tensor) -> Tensor:
        """Multiplies."""
        ctx.save_for_backward(x_ND, w_HD)
        return onednn_linear(x_ND, w_HD)

    @staticmethod
    def backward(ctx: Any, g_NH: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """``g w`` and ``g^T x``."""
        x_ND, w_HD = ctx.saved_tensors
        needs_x, needs_w = ctx.needs_input_grad
        dx_ND = product(g_NH, w_HD.t()) if needs_x else None
        return dx_ND, product(g_NH.t(), x_ND.t()) if needs_w else None
