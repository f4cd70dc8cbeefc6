"""Builds torch's AdamW with two parameter groups: what decays and what does not."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW as TorchAdamW
from torch.optim import Optimizer

from moekit_optimizers.adamw import AdamW
from moekit_optimizers.decay import groups


def adamw(spec: AdamW, model: nn.Module) -> Optimizer:
    """AdamW over the model's trainable parameters; a tied parameter is there once.

    One kernel for all parameters (``fused``) when all are on CUDA, else the ``foreach`` form; the two differ in
    rounding alone.

    Args:
        spec: rate, betas, decay and epsilon.
        model: its parameters are moved; frozen ones (``requires_grad`` false) are left out.

    Returns:
        The optimizer, with a group that decays before one that does not; a group without parameters is left out.

    Raises:
        ValueError: the model has no trainable parameter.
    """
    parts = groups(model, spec.weight_decay, "AdamW")
    on_cuda = all(p.is_cuda for part in parts for p in part["params"])
    return TorchAdamW(
        parts,
        lr=spec.lr,
        betas=(spec.betas[0], spec.betas[1]),
        eps=spec.eps,
        fused=True if on_cuda else None,
        foreach=None if on_cuda else True,
    )
