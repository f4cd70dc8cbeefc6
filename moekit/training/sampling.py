"""Sampling that resumes exactly: a training batch is a function of (seed, step, micro-batch, rank) and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import torch

from moekit.contracts import Batch, Data
from moekit.errors import DataError

ENDLESS = 2**40
"""Length of a loader without an end. Lightning must be told some length: without one it fetches a batch ahead, and
the position it saves is then one too far."""


def seed_of(*parts: int) -> int:
    """A 63-bit seed from whole numbers, the same on every machine and in every process."""
    digest = hashlib.sha256(",".join(str(p) for p in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def batch_at(data: Data, *, seed: int, step: int, micro: int = 0, rank: int = 0) -> Batch:
    """The training batch of one micro-batch of one step on one rank."""
    return data.train_batch(torch.Generator().manual_seed(seed_of(seed, step, micro, rank)))


class StepLoader:
    """An iterable of training batches with a position that can be saved.

    Args:
        data: draws the batches; already prepared.
        seed: the run's seed.
        accumulate: micro-batches in an optimizer step.
        rank: this process's place among those that see different data.
        steps: optimizer steps in an epoch; None for one epoch without an end.
    """

    def __init__(self, data: Data, *, seed: int, accumulate: int = 1, rank: int = 0, steps: int | None = None) -> None:
        self.data = data
        self.seed = seed
        self.accumulate = accumulate
        self.rank = rank
        self.steps = steps
        self.position = 0  # batches given out since the start of the run

    def __len__(self) -> int:
        """Batches in an epoch."""
        return ENDLESS if self.steps is None else self.steps * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        """The batches from the position to the end of its epoch."""
        end = (self.position // len(self) + 1) * len(self)
        while self.position < end:
            step, micro = divmod(self.position, self.accumulate)
            self.position += 1
            yield batch_at(self.data, seed=self.seed, step=step, micro=micro, rank=self.rank)

    def state_dict(self) -> dict[str, Any]:
        """The position, in optimizer steps and micro-batches beyond them."""
        step, micro = divmod(self.position, self.accumulate)
        return {"step": step, "micro": micro}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved position."""
        self.position = int(state["step"]) * self.accumulate + int(state["micro"])


class ValidationShare:
    """The validation set, dealt out batch by batch to ranks.

    Args:
        data: yields the batches; already prepared.
        rank, world: this process's place.
    """

    def __init__(self, data: Data, rank: int = 0, world: int = 1) -> None:
        self.data = data
        self.rank = rank
        self.world = world

    def __iter__(self) -> Iterator[Batch]:
        """This rank's batches, always in the same order.

        Raises:
            DataError: there are fewer batches than ranks. A rank without one would wait for the others for ever:
                both DDP and the sums over ranks ask for as much from each.
        """
        batches = self.data.validation_batches()
        first = list(islice(batches, self.world))
        if 0 < len(first) < self.world:
            raise DataError(
                f"the validation set has {len(first)} batches, too few for {self.world} ranks: give each of them one, "
                "by a larger set, smaller batches or fewer ranks"
            )
        return (batch for i, batch in enumerate(chain(first, batches)) if i % self.world == self.rank)
