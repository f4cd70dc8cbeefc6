"""Gradients of the parameters that every rank holds whole."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn

from moekit.parallel.sums import all_reduce_sums
from moekit.shards import local


def sum_gradients(parameters: Iterable[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Sums the gradients of replicated parameters over a group of ranks, in place.

    A parameter that has a gradient on some ranks alone counts as 0 on the others; one that has none keeps none.
    Collective. Reads the device only if a parameter has no gradient on this rank.
    """
    trained = [p for p in parameters if p.requires_grad]
    if not trained or dist.get_world_size(group) == 1:
        return
    missing = [i for i, p in enumerate(trained) if p.grad is None]
    has_P = torch.ones(len(trained), dtype=trained[0].dtype, device=trained[0].device)
    for i in missing:
        has_P[i] = 0
        trained[i].grad = torch.zeros_like(trained[i])
    gradients = [local(p.grad) for p in trained if p.grad is not None]
    all_reduce_sums((tensor, (group,)) for tensor in (has_P, *gradients))
    if missing:
        for i, anywhere in zip(missing, has_P[missing].tolist(), strict=True):
            trained[i].grad = trained[i].grad if anywhere else None
