"""Builds torch's SGD over all trainable parameters."""

from __future__ import annotations

from torch import nn
from torch.optim import SGD as TorchSGD
from torch.optim import Optimizer

from moekit_optimizers.sgd import SGD


def sgd(spec: SGD, model: nn.Module) -> Optimizer:
    """Gradient descent over the model's trainable parameters (``requires_grad``), without weight decay.

    Raises:
        ValueError: the model has no trainable parameter.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError(f"{type(model).__name__} has no trainable parameter for SGD")
    return TorchSGD(params, lr=spec.lr, momentum=spec.momentum, foreach=True)
