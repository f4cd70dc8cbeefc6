"""Which parameters have weight decay, and the two parameter groups of an optimizer."""

from __future__ import annotations

from typing import Any

from torch import nn


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter has weight decay: matrices have, vectors and biases have not.

    Matrices are all parameters with two or more dimensions: linear weights, routers, embeddings and stacked experts'
    weights. Biases and scales stacked over experts (``[E, H]``) are not, by the first word of their own name: ``bias``,
    ``bias_EH``, ``b_up_EH``, ``scale_EH``. Balancers' state is in buffers, which no optimizer updates.
    """
    own_name = name.rpartition(".")[2]
    return parameter.ndim >= 2 and own_name.partition("_")[0] not in ("bias", "b", "scale")


def groups(model: nn.Module, weight_decay: float, optimizer: str) -> list[dict[str, Any]]:
    """The model's trainable parameters: a group with weight decay, then one without; empty groups are omitted.

    Args:
        model: frozen parameters (``requires_grad`` false) are skipped, tied ones are included once.
        weight_decay: rate of the first group; the other's is 0.
        optimizer: its name, for the error.

    Raises:
        ValueError: the model has no trainable parameter.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    parts = (
        ([p for name, p in named if decays(name, p)], weight_decay),
        ([p for name, p in named if not decays(name, p)], 0.0),
    )
    if not named:
        raise ValueError(f"{type(model).__name__} has no trainable parameter for {optimizer}")
    return [{"params": params, "weight_decay": rate} for params, rate in parts if params]
