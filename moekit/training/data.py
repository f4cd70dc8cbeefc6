"""Sampling that resumes exactly: a training batch is a function of (seed, step, micro-batch) and nothing else.

The micro-batches of a step are numbered over all ranks: 4 ranks with one each, 2 with two and one with four see the
same 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import get_worker_info

from moekit.contracts import Batch, Data, Source
from moekit.errors import DataError
from moekit.seeds import seed_of

ENDLESS = 2**40
"""Length of a loader without an end. Lightning must be told some length: without one it fetches a batch ahead, and
the position it saves is then one too far."""


def batch_at(data: Data, *, seed: int, step: int, micro: int = 0) -> Batch:
    """The training batch of one micro-batch of one step; micro-batches are numbered over all ranks."""
    return data.train_batch(torch.Generator().manual_seed(seed_of(seed, "batch", step, micro)))


def noise_seed(*, seed: int, step: int, micro: int) -> int:
    """The seed of what a model draws itself (dropout, noise) in a micro-batch, numbered as for ``batch_at``."""
    return seed_of(seed, "noise", step, micro)


class StepLoader:
    """An iterable of training batches with a position that can be saved.

    Args:
        data: draws the batches; already prepared.
        seed: the run's seed.
        accumulate: micro-batches in an optimizer step, of one rank.
        rank, world: this process's place among those that see different data.
        steps: optimizer steps in an epoch; None for one epoch without an end.
    """

    def __init__(
        self, data: Data, *, seed: int, accumulate: int = 1, rank: int = 0, world: int = 1, steps: int | None = None
    ) -> None:
        self.data = data
        self.seed = seed
        self.accumulate = accumulate
        self.rank, self.world = rank, world
        self.steps = steps
        self.position = 0  # batches given out since the start of the run

    def __len__(self) -> int:
        """Batches in an epoch."""
        return ENDLESS if self.steps is None else self.steps * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        """The batches from the position to the end of its epoch.

        Raises:
            DataError: in a worker process of torch's DataLoader, each of which would give out every batch.
        """
        if get_worker_info() is not None:
            raise DataError(
                "a StepLoader is a loader itself: in the worker processes of a DataLoader every batch would be trained "
                "on once for each of them, and its position would not be saved; give it to Trainer.fit as it is"
            )
        end = (self.position // len(self) + 1) * len(self)
        while self.position < end:
            step, micro = divmod(self.position, self.accumulate)
            self.position += 1
            yield batch_at(self.data, seed=self.seed, step=step, micro=micro * self.world + self.rank)

    def state_dict(self) -> dict[str, Any]:
        """The position, in optimizer steps and micro-batches beyond them."""
        step, micro = divmod(self.position, self.accumulate)
        return {"step": step, "micro": micro}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved position."""
        self.position = int(state["step"]) * self.accumulate + int(state["micro"])


class ValidationShard:
    """The validation set, dealt out batch by batch to ranks.

    Where the last round does not go round, the ranks without a batch get one of padding alone, which counts nothing:
    a model in shards is run by all ranks together, and sums are taken over all of them.

    Args:
        data: yields the batches; already prepared.
        rank, world: this process's place.
        most: batches of all ranks together; None for the whole set.
    """

    def __init__(self, data: Data, rank: int = 0, world: int = 1, most: int | None = None) -> None:
        self.data = data
        self.rank = rank
        self.world = world
        self.most = most

    def __iter__(self) -> Iterator[Batch]:
        """This rank's batches, always in the same order."""
        batches = islice(self.data.validation_batches(), self.most)
        while round_ := list(islice(batches, self.world)):
            yield round_[self.rank] if self.rank < len(round_) else blank(round_[0])


def blank(batch: Batch) -> Batch:
    """A batch like another, of padding alone."""
    source = batch.source and Source(batch.source.tokens, torch.zeros_like(batch.source.tokens, dtype=torch.bool))
    shape = batch.inputs.shape[:-1] if batch.inputs.is_floating_point() else batch.inputs.shape
    return batch._replace(
        valid=torch.zeros(shape, dtype=torch.bool, device=batch.inputs.device),
        num_bytes=None if batch.num_bytes is None else torch.zeros_like(batch.num_bytes),
        source=source,
    )
