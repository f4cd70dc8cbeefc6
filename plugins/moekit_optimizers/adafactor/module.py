"""Builds torch's Adafactor with two parameter groups: what decays and what does not."""

from __future__ import annotations

from torch import nn
from torch.optim import Adafactor as TorchAdafactor
from torch.optim import Optimizer

from moekit_optimizers.adafactor import Adafactor
from moekit_optimizers.decay import groups


def adafactor(spec: Adafactor, model: nn.Module) -> Optimizer:
    """Adafactor over the model's trainable parameters; a tied parameter is there once.

    The last two dimensions of a tensor are factored, so weights stacked over experts have rows and columns of their
    own for each expert; the weights' size and the clip are taken over the whole stack, as Mesh TensorFlow does.

    torch's own default of ``eps[0]``, the resolution of the dtype (1.2e-7 in fp32), is no small number here: it
    bounds *squared* gradients, so that a tensor whose gradients are below 3e-4 would take larger steps than the
    paper's, and among stacked experts those with the smallest gradients most of all.

    Args:
        spec: rate, decay of the means, clip, weight decay and epsilons.
        model: its parameters are moved; frozen ones (``requires_grad`` false) are left out.

    Raises:
        ValueError: the model has no trainable parameter.
    """
    # The clip goes in by the groups: torch's constructor refuses one below 1, which its update computes as well.
    parts = [part | {"d": spec.clip} for part in groups(model, spec.weight_decay, "Adafactor")]
    return TorchAdafactor(parts, lr=spec.lr, beta2_decay=-spec.decay, eps=(spec.eps[0], spec.eps[1]))
