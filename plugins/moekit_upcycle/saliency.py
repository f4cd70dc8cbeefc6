"""How much each expert of a mixture contributes: the mean of gate times norm of its output, over its tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moekit.contracts import Batch, Model
from moekit.contracts.layer import LoopGroups
from moekit.errors import MoekitError
from moekit.moe_layer import MoELayer
from moekit.routing import TokenChoice


@dataclass
class Saliency:
    """Of one layer; fp64.

    Attributes:
        sum_E: gate times norm, summed over the tokens of each expert.
        load_E: tokens of each expert.
    """

    sum_E: Tensor
    load_E: Tensor

    @property
    def mean_E(self) -> Tensor:
        """The mean over an expert's tokens; 0 for a dead one."""
        return self.sum_E / self.load_E.clamp(min=1)


@torch.no_grad()
def saliency(model: Model, batches: Iterable[Batch]) -> dict[str, Saliency]:
    """The saliency of every expert by layer name, over some text.

    Every expert runs again on its tokens, one after the other, so that this does not depend on the dispatcher.

    Source: Lasby et al. 2025, REAP the Experts (arXiv 2510.13999), for the criterion.

    Args:
        model: in evaluation mode.
        batches: of what the model takes.

    Raises:
        MoekitError: it has no layer in which each token chooses its experts.
    """
    found: dict[str, Saliency] = {}
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MoELayer)}
    hooks = [layer.register_forward_hook(partial(_add, found, name)) for name, layer in layers.items()]
    try:
        for batch in batches:
            model.on(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise MoekitError("the model has no layer in which each token chooses its experts, or there is no text")
    return found


def _add(
    found: dict[str, Saliency], name: str, layer: MoELayer, args: tuple[Any, ...], output: tuple[Any, Any]
) -> None:
    x_TD, routing = args[0].flatten(0, -2), output[1].routing
    if not isinstance(routing, TokenChoice):
        return
    E = layer.experts.num_experts
    pairs = routing.pairs()
    order_N = pairs.expert_N.argsort(stable=True)
    expert_N, token_N, gate_N = pairs.expert_N[order_N], pairs.token_N[order_N], pairs.gate_N[order_N]
    sent = int((expert_N < E).sum())
    load_E = torch.bincount(expert_N[:sent], minlength=E)
    y_NO = layer.experts(x_TD[token_N[:sent]], LoopGroups(load_E.tolist()))
    norm_N = gate_N[:sent].abs().double() * y_NO.double().norm(dim=-1)
    sum_E = norm_N.new_zeros(E).index_add_(0, expert_N[:sent], norm_N)
    before = found.setdefault(name, Saliency(torch.zeros_like(sum_E), torch.zeros_like(sum_E)))
    found[name] = Saliency(before.sum_E + sum_E, before.load_E + load_E)
