"""State of an optimizer that has one number where its parameter has a row: where it lies when the parameter is cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from moekit.shards.shard import Box, Place


@runtime_checkable
class Reduces(Protocol):
    """An optimizer whose state holds sums or means along a dimension of a parameter.

    Such state has the parameter's dimensions, that one of length 1. It is a plain tensor: along that dimension the same
    on all ranks between whom it is cut, along the others cut as the parameter.

    Attributes:
        reduced: the dimension, by the state's key; -1 is the parameter's last.
    """

    reduced: Mapping[str, int]


def reduced_by(optimizer: object) -> Mapping[str, int]:
    """What an optimizer says it reduces; nothing for one that does not."""
    return optimizer.reduced if isinstance(optimizer, Reduces) else {}


def reduced_place(box: Box, dim: int) -> tuple[Place, Place, Place]:
    """Global shape, offset and sizes of what is reduced along a dimension of a parameter that lies as ``box``."""
    dim %= len(box.global_shape)

    def put(place: Place, number: int) -> Place:
        return (*place[:dim], number, *place[dim + 1 :])

    return put(box.global_shape, 1), put(box.offset, 0), put(box.sizes, 1)
