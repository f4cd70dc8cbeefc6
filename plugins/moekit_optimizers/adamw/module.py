"""Builds torch's AdamW with two parameter groups: what decays and what does not."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW as TorchAdamW
from torch.optim import Optimizer

from moekit_optimizers.adamw import AdamW


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices, not to vectors and biases.

    A parameter decays when it has two or more dimensions: linear weights, routers, embeddings, and experts' weights
    stacked over experts. Norm scales and biases do not, and neither does a bias stacked over experts (``[E, H]``),
    told by the first word of its own name: ``bias``, ``bias_EH``, ``b_up_EH``. Balancers' state is buffers, not
    parameters: no optimizer sees it.

    Args:
        name: qualified name of the parameter in its model.
        parameter: the parameter itself.
    """
    own_name = name.rpartition(".")[2]
    return parameter.ndim >= 2 and own_name.partition("_")[0] not in ("bias", "b")


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
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if decays(name, p)]
    plain = [p for name, p in named if not decays(name, p)]
    groups = [
        {"params": params, "weight_decay": rate}
        for params, rate in ((decayed, spec.weight_decay), (plain, 0.0))
        if params
    ]
    if not groups:
        raise ValueError(f"{type(model).__name__} has no trainable parameter for AdamW to move")
    on_cuda = all(p.is_cuda for _, p in named)
    return TorchAdamW(
        groups,
        lr=spec.lr,
        betas=(spec.betas[0], spec.betas[1]),
        eps=spec.eps,
        fused=True if on_cuda else None,
        foreach=None if on_cuda else True,
    )
