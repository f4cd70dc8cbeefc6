"""Which parameters weight decay applies to, and the two groups that an optimizer makes of them."""

from __future__ import annotations

from typing import Any

from torch import nn


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices, not to vectors and biases.

    A parameter decays when it has two or more dimensions: linear weights, routers, embeddings, and experts' weights
    stacked over experts. Norm scales and biases do not, and neither does a bias or a scale stacked over experts
    (``[E, H]``), told by the first word of its own name: ``bias``, ``bias_EH``, ``b_up_EH``, ``scale_EH``. Balancers'
    state is buffers, not parameters: no optimizer sees it.

    Args:
        name: qualified name of the parameter in its model.
        parameter: the parameter itself.
    """
    own_name = name.rpartition(".")[2]
    return parameter.ndim >= 2 and own_name.partition("_")[0] not in ("bias", "b", "scale")


def groups(model: nn.Module, weight_decay: float, optimizer: str) -> list[dict[str, Any]]:
    """The model's trainable parameters, those that decay before those that do not; no empty group.

    Args:
        model: its frozen parameters (``requires_grad`` false) are left out; a tied one is there once.
        weight_decay: rate of the group that decays; the other's is 0.
        optimizer: a name for the error.

    Raises:
        ValueError: the model has no trainable parameter.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    parts = (
        ([p for name, p in named if decays(name, p)], weight_decay),
        ([p for name, p in named if not decays(name, p)], 0.0),
    )
    if not named:
        raise ValueError(f"{type(model).__name__} has no trainable parameter for {optimizer} to move")
    return [{"params": params, "weight_decay": rate} for params, rate in parts if params]
