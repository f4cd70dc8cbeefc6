"""RMSNorm and LayerNorm, computed at least in fp32, whatever autocast or the dtype of the weights says.

Source: Zhang & Sennrich 2019 (RMSNorm, eq. 4); Ba et al. 2016 (LayerNorm, eq. 4).
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.compat import is_transformed
from moekit_models.derivatives import differentiable_gradients


class RMSNorm(nn.RMSNorm):
    """``x / sqrt(mean(x²) + eps) · weight`` over the last dimension, in the wider of the two dtypes.

    Under autocast ``nn.RMSNorm`` itself would get bf16 with an fp32 weight, and leave its fused kernel with a warning.
    torch has no such kernel for CPUs: there ``FewPasses`` is faster in fp32. ``torch.compile`` makes its own.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D] -> [..., D]``, in the dtype of ``x``."""
        own = cast("Tensor | None", self.weight)  # None without a learned weight
        on_cpu = x.device.type == "cpu" and self.eps is not None
        if on_cpu and own is not None and x.dtype == own.dtype == torch.float32:
            if torch.is_grad_enabled() and not torch.compiler.is_compiling() and not is_transformed():
                return cast(Tensor, FewPasses.apply(x, own, self.eps))  # type: ignore[no-untyped-call]
            return F.rms_norm(x, self.normalized_shape, own, self.eps)
        wide = torch.promote_types(x.dtype, torch.float32 if own is None else own.dtype)
        weight = None if own is None else own.to(wide)
        return F.rms_norm(x.to(wide), self.normalized_shape, weight, self.eps).to(x.dtype)


class FewPasses(torch.autograd.Function):
    """RMSNorm in three passes over the tokens forward, and in five backward, where torch takes six and thirteen.

    Differentiable any number of times.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """The normed tokens; saves what each was multiplied by."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, scale)
        ctx.eps = eps
        return torch.mul(x, scale).mul_(weight_D)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Gradients of tokens and weight: both sums are products of one array with a vector."""
        x, weight_D, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative
            y = F.rms_norm(x, weight_D.shape, weight_D, ctx.eps)
            dx, dw = differentiable_gradients(y, (x, weight_D), ctx.needs_input_grad, g)
            return dx, dw, None
        D = x.shape[-1]
        x_ND, g_ND, scale_N = x.reshape(-1, D), g.reshape(-1, D), scale.reshape(-1)
        gx_ND = g_ND * x_ND
        dw_D = torch.mv(gx_ND.t(), scale_N) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, dw_D, None
        share_N = torch.mv(gx_ND, weight_D).mul_(scale_N.pow(3)).div_(-D)
        dx_ND = torch.mul(g_ND, weight_D, out=gx_ND).mul_(scale_N[:, None]).addcmul_(x_ND, share_N[:, None])
        return dx_ND.view(x.shape), dw_D, None


class LayerNorm(nn.LayerNorm):
    """``(x - mean(x)) / sqrt(var(x) + eps) · weight + bias`` over the last dimension, in the wider of both dtypes."""

    def forward(self, input: Tensor) -> Tensor:
        """``[..., D] -> [..., D]``, in the dtype of the input."""
        wide = torch.promote_types(input.dtype, self.weight.dtype)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return F.layer_norm(input.to(wide), self.normalized_shape, weight, bias, self.eps).to(input.dtype)
