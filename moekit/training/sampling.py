"""Sampling that resumes exactly: a training batch is a function of (seed, step, micro-batch) and nothing else.

The micro-batches of a step are numbered over all ranks: 4 ranks with one each, 2 with two and one with four see the
same 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import torch

from moekit.contracts import Batch, Data
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
        """The batches from the position to the end of its epoch."""
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
