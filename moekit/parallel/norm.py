"""The norm of gradients, however they are laid out."""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from moekit.compat import foreach_norm
from moekit.shards.shard import expert_parallel_layers, local


def total_norm(module: nn.Module) -> Tensor:
    """0-d: the norm of all gradients of a module together; 0 where there are none. Stays on the device.

    What is in shards is added up over all ranks, each shard being on one of them; what every rank holds whole counts
    once. Each gradient's own norm is taken in fp32 at least, and they are put together in fp64 (on MPS, which has none,
    in fp32). Collective where anything is in shards: every rank calls it.

    Args:
        module: a plain model, or one that ``shard`` has cut up.
    """
    experts = {p for layer in expert_parallel_layers(module) for p in layer.experts.parameters()}
    parameters = list(module.parameters())
    in_shards = [p for p in parameters if isinstance(p, DTensor) or p in experts]
    whole = [p for p in parameters if not (isinstance(p, DTensor) or p in experts)]
    squares = _squares(whole, parameters)
    if in_shards:
        apart = _squares(in_shards, parameters)
        dist.all_reduce(apart)
        squares = squares + apart
    return squares.sqrt()


def _squares(some: list[nn.Parameter], among: list[nn.Parameter]) -> Tensor:
    """0-d: the sum of squares of what this process holds of some gradients, on the device of the first of ``among``."""
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for p in some:
        if p.grad is not None and (held := local(p.grad)).numel():
            by_kind[held.device, held.dtype].append(held)
    device = among[0].device if among else torch.device("cpu")
    total = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    for (_, dtype), grads in by_kind.items():
        norms = foreach_norm(grads, torch.promote_types(dtype, torch.float32))
        total += torch.stack(norms).to(total.device, total.dtype).square().sum()
    return total
