"""Who writes what: the pieces of all ranks become one table, in which every element of every tensor stands once."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moekit.checkpoints.process_group import Ranks
from moekit.checkpoints.safetensors_file import NAMES
from moekit.errors import CheckpointError
from moekit.shards.shard import Dims, TensorShard, tiling_error

SMALL = 1 << 16  # elements of a piece that is no work to write

Table = dict[str, dict[str, Any]]
"""By tensor: ``dtype``, ``shape``, and ``parts``, each with ``file``, ``offset`` and ``shape``. It goes into JSON."""


@dataclass(frozen=True)
class Plan:
    """What is to be written.

    Args:
        table: where each piece of each tensor will lie; the same on every rank.
        mine: the pieces that this rank writes.
        file: its file.
    """

    table: Table
    mine: Mapping[str, TensorShard]
    file: str


def file_of(rank: int, world: int) -> str:
    """The name of a rank's file."""
    return f"tensors-{rank + 1:05d}-of-{world:05d}.safetensors"


def make_plan(boxes: Mapping[str, TensorShard], pieces: frozenset[str], ranks: Ranks) -> Plan:
    """Deals out the writing. Collective.

    A tensor that is no piece is the first rank's to write; a piece that several ranks hold is written by the one that
    has least to write so far, or by the first of them where it is small: whoever reads one number of a file has to read
    it whole, for its sum, and balancers' biases in every file would have every rank read all of them.

    Args:
        boxes: the tensors of this rank's tree, by name.
        pieces: which of them are pieces of tensors that the ranks hold together.
        ranks: all that take part.

    Raises:
        CheckpointError: a type that cannot be written, or pieces that do not tile their tensor.
    """
    told = {
        name: (str(NAMES.get(box.tensor.dtype, box.tensor.dtype)), box.global_shape, box.offset, box.sizes)
        for name, box in boxes.items()
        if name in pieces or ranks.rank == 0
    }
    heard = [json.loads(text) for text in ranks.gather(json.dumps(told))]
    table: Table = {}
    load = [0] * ranks.world
    mine = {}
    for name in dict.fromkeys(name for each in heard for name in each):
        dtype, shape = _agreed(name, [each[name] for each in heard if name in each])
        holders: dict[tuple[Dims, Dims], list[int]] = {}
        for rank, each in enumerate(heard):
            if name in each and math.prod(sizes := tuple(each[name][3])):
                holders.setdefault((tuple(each[name][2]), sizes), []).append(rank)
        if wrong := tiling_error(shape, list(holders)):
            raise CheckpointError(f"cannot save {name} {list(shape)}: {wrong}")
        parts = []
        for (offset, sizes), held_by in holders.items():
            small = math.prod(sizes) <= SMALL
            writer = held_by[0] if small else min(held_by, key=lambda rank: (load[rank], rank))
            load[writer] += math.prod(sizes)
            parts.append({"file": file_of(writer, ranks.world), "offset": list(offset), "shape": list(sizes)})
            if writer == ranks.rank:
                mine[name] = boxes[name]
        table[name] = {"dtype": dtype, "shape": list(shape), "parts": parts}
    return Plan(table, mine, file_of(ranks.rank, ranks.world))


def _agreed(name: str, told: list[Any]) -> tuple[str, Dims]:
    """The type and the whole shape, on which all ranks must agree."""
    kinds = {(dtype, tuple(shape)) for dtype, shape, *_ in told}
    if len(kinds) != 1:
        raise CheckpointError(f"cannot save {name}: ranks hold pieces of different tensors: {sorted(kinds)}")
    ((dtype, shape),) = kinds
    if dtype not in NAMES.values():
        raise CheckpointError(f"cannot save {name}: the file format has no name for tensors of {dtype}")
    return dtype, shape
