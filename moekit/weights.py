"""Drawing the weights of a whole model: by name, so that a seed names one model however it is laid out.

Every part is drawn under a seed of its own, made of the model's seed and the part's name; every routed expert under one
of its own, with its number among all experts. What else is built, in which order, and how many of the experts live in
this process changes no weight.
"""

from __future__ import annotations

import torch
from torch import nn

from moekit.contracts import ExpertBank, Init, Router
from moekit.layer import MoELayer
from moekit.seeds import seed_of


def init_weights(module: nn.Module, init: Init, seed: int) -> None:
    """Draws every matrix below ``module`` by ``init`` and sets biases to 0; norms stay 1.

    Routers and expert banks draw their own (``Router.init_weights``): they may know better. Where nothing can be drawn,
    on the meta device, nothing is.

    Args:
        module: a model.
        init: how.
        seed: best drawn (``draw_seed``) before the model is built: building draws too, and not alike in every layout.
    """
    with torch.random.fork_rng(devices=[]):
        _draw(module, init, seed, "")


def _draw(module: nn.Module, init: Init, seed: int, name: str, first: int = 0) -> None:
    if any(parameter.is_meta for parameter in module.parameters()):
        return
    if isinstance(module, ExpertBank):
        _draw_experts(module, init, seed, name, first)
        return
    torch.manual_seed(seed_of(seed, name))
    if isinstance(module, Router):
        module.init_weights(init)
        return
    for own, parameter in module.named_parameters(recurse=False):
        if parameter.ndim >= 2:
            init.draw(parameter, inputs=1 if isinstance(module, nn.Embedding) else None)
        elif own.startswith("b"):
            nn.init.zeros_(parameter)
    here = module.dispatcher.here if isinstance(module, MoELayer) else None
    for child_name, child in module.named_children():
        routed = here is not None and child_name == "experts"
        _draw(child, init, seed, f"{name}.{child_name}" if name else child_name, here.start if routed and here else 0)


def _draw_experts(bank: ExpertBank, init: Init, seed: int, name: str, first: int) -> None:
    """Draws a bank expert by expert, as if it held that one alone; one that is not stacked, as a whole.

    Args:
        bank: its parameters are written.
        init, seed, name: as above.
        first: number of the bank's first expert among all of its layer.
    """
    owned = [(m, own, p) for m in bank.modules() for own, p in m.named_parameters(recurse=False)]
    if any(p.ndim < 1 or p.shape[0] != bank.num_experts for _, _, p in owned):
        torch.manual_seed(seed_of(seed, name))
        bank.init_weights(init)
        return
    try:
        for e in range(bank.num_experts):
            for m, own, p in owned:
                setattr(m, own, nn.Parameter(p.detach()[e : e + 1], requires_grad=False))  # a view: drawn in place
            torch.manual_seed(seed_of(seed, name, first + e))
            bank.init_weights(init)
    finally:
        for m, own, p in owned:
            setattr(m, own, p)
