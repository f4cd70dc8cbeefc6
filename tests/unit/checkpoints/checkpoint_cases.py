"""What tests of checkpoints share: small checkpoints, simulated ranks, damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from moekit.checkpoints.files import Retention, step_name
from moekit.checkpoints.writing import Ranks, assign_shards, save_tree
from moekit.errors import CheckpointError
from moekit.shards import TensorShard

TENSORS = "tensors-00001-of-00001.safetensors"


def numbers(step: int) -> dict[str, Any]:
    return {"w": torch.full((300,), float(step)), "step": step}


def save(folder: Path, step: int, **retention: Any) -> Path:
    path = folder / step_name(step)
    save_tree(numbers(step), path, step=step, retention=Retention(**retention))
    return path


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


class SimulatedRanks(Ranks):
    """One of several ranks, in one process: what the others send is given, or nothing."""

    def __init__(self, rank: int, world: int, received: list[Any] | None = None) -> None:
        self.rank, self.world, self.received = rank, world, received
        self.sent: Any = None
        self.group = None

    def all_gather(self, value: Any) -> list[Any]:
        self.sent = value
        if self.received is not None:
            return self.received
        return [value if rank == self.rank else {} for rank in range(self.world)]


def exchanged(trees: list[dict[str, TensorShard]], sharded: frozenset[str]) -> list[SimulatedRanks]:
    """The ranks of ``trees``, each of which receives what all send to plan a save."""
    world, sent = len(trees), []
    for rank, tree in enumerate(trees):
        alone = SimulatedRanks(rank, world)
        try:
            assign_shards(tree, sharded, alone)
        except CheckpointError:
            pass  # alone, it does not hold every shard
        sent.append(alone.sent)
    return [SimulatedRanks(rank, world, sent) for rank in range(world)]
