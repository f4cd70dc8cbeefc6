"""Builds torch's AdamW with two parameter groups: one with weight decay, one without."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW as TorchAdamW
from torch.optim import Optimizer

from moekit_optimizers.adamw import AdamW
from moekit_optimizers.decay import groups

FUSED = ("cpu", "cuda")
"""Devices on which one fused kernel is used: it reads each weight once, the foreach form reads it ten times."""


def adamw(spec: AdamW, model: nn.Module) -> Optimizer:
    """AdamW over the model's trainable parameters (``requires_grad``), tied ones once.

    One kernel (``fused``) when all parameters are real and on a CPU or on CUDA, else the ``foreach`` form; the two
    differ in rounding alone. Measured on two CPU cores in fp32, 2.6 million weights: 3.4 ms a step against 13.4.

    Returns:
        The optimizer: first the group with decay, then the one without; empty groups are omitted.

    Raises:
        ValueError: the model has no trainable parameter.
    """
    parts = groups(model, spec.weight_decay, "AdamW")
    fused = all(p.device.type in FUSED and p.is_floating_point() for part in parts for p in part["params"])
    optimizer = TorchAdamW(
        parts,
        lr=spec.lr,
        betas=(spec.betas[0], spec.betas[1]),
        eps=spec.eps,
        fused=True if fused else None,
        foreach=None if fused else True,
    )
    # torch's fused form can unscale fp16 gradients inside its step; trainers then refuse to clip them before it,
    # even in bf16. Without this flag a scaler unscales them first, as for every other optimizer.
    optimizer._step_supports_amp_scaling = False
    return optimizer
