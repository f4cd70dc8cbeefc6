"""The norm of all gradients of a model, in any layout."""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from moekit.compat import foreach_norm
from moekit.shards.shard import expert_parallel_layers, local


def total_norm(module: nn.Module) -> Tensor:
    """The 2-norm of all gradients of a module together, 0-d, on its device; 0 if there are none.

    Squares of sharded gradients are summed over all ranks; a replicated gradient counts once. The norm of each gradient
    is computed in at least fp32, their sum in fp64 (fp32 on MPS, which has no fp64). Collective for a sharded model.
    """
    experts = {p for layer in expert_parallel_layers(module) for p in layer.experts.parameters()}
    parameters = list(module.parameters())
    sharded = [p for p in parameters if isinstance(p, DTensor) or p in experts]
    replicated = [p for p in parameters if not (isinstance(p, DTensor) or p in experts)]
    device = parameters[0].device if parameters else torch.device("cpu")
    squares = _sum_of_squares(replicated, device)
    if sharded:
        sharded_squares = _sum_of_squares(sharded, device)
        dist.all_reduce(sharded_squares)
        squares = squares + sharded_squares
    return squares.sqrt()


def _sum_of_squares(parameters: list[nn.Parameter], device: torch.device) -> Tensor:
    """The sum of squares of this rank's parts of the gradients, 0-d, on ``device``."""
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for p in parameters:
        if p.grad is not None and (grad := local(p.grad)).numel():
            by_kind[grad.device, grad.dtype].append(grad)
    total = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    for (_, dtype), grads in by_kind.items():
        norms = foreach_norm(grads, torch.promote_types(dtype, torch.float32))
        total += torch.stack(norms).to(total.device, total.dtype).square().sum()
    return total
