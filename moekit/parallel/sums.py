"""Sums over ranks: many tensors in few messages."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moekit.compat import foreach_copy

PartialSum = tuple[Tensor, tuple[dist.ProcessGroup, ...]]
"""This rank's part of a sum, and the process groups over which to all-reduce it, one after another."""

MESSAGE_BYTES = 1 << 25
"""Of one all-reduce, at most; a larger tensor has one of its own. Large enough for the full speed of a network."""

IN_FLIGHT = 2  # all-reduces at a time: one is sent while another is copied


def messages(sizes: Sequence[int]) -> list[range]:
    """Which of many tensors, of these bytes, share a message: consecutive ones, at most ``MESSAGE_BYTES`` together."""
    found: list[range] = []
    held = 0
    for i, size in enumerate(sizes):
        if not found or held + size > MESSAGE_BYTES:
            found.append(range(i, i))
            held = 0
        found[-1] = range(found[-1].start, i + 1)
        held += size
    return found


def all_reduce_sums(sums: Iterable[PartialSum]) -> None:
    """All-reduces many tensors in place, in few messages for each process group and dtype. Half precision: in fp32.

    Collective: the ranks of a group pass tensors of the same shapes in the same order. No two share memory.
    """
    batches: dict[tuple[dist.ProcessGroup, torch.dtype], list[Tensor]] = {}
    for tensor, groups in sums:
        for group in groups:
            batches.setdefault((group, tensor.dtype), []).append(tensor)
    for (group, dtype), tensors in batches.items():
        wide = torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype
        in_flight: deque[tuple[Any, Tensor, list[Tensor]]] = deque()
        for some in _split(tensors, wide):
            message = torch.cat([tensor.flatten() for tensor in some]).to(wide)
            in_flight.append((dist.all_reduce(message, group=group, async_op=True), message, some))
            if len(in_flight) == IN_FLIGHT:
                _receive(*in_flight.popleft())
        for each in in_flight:
            _receive(*each)


def _split(tensors: list[Tensor], wide: torch.dtype) -> Iterator[list[Tensor]]:
    for message in messages([tensor.numel() * wide.itemsize for tensor in tensors]):
        yield tensors[message.start : message.stop]


def _receive(work: Any, message: Tensor, tensors: list[Tensor]) -> None:
    work.wait()
    totals = message.split_with_sizes([tensor.numel() for tensor in tensors])
    foreach_copy(tensors, [total.view_as(tensor) for tensor, total in zip(tensors, totals, strict=True)])
