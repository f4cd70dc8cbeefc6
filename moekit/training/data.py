"""Loading data so that a run resumes exactly: a training batch depends only on (seed, step, micro-batch).

The micro-batches of a step are numbered over all ranks. So 4 ranks with 1 micro-batch each, 2 ranks with 2, and 1 rank
with 4 see the same 4 batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from moekit.contracts import Batch, Data, Place, Source
from moekit.errors import DataError
from moekit.seeds import seed_of
from moekit.spec.recipe import BatchRamp

ENDLESS = 2**40
"""Length of an endless loader. From a loader without a length, Lightning fetches one batch too many, and so saves a
position that is one too far."""


def batch_at(
    data: Data, *, seed: int, step: int, micro: int = 0, micros: int = 1, ramp: BatchRamp | None = None
) -> Batch:
    """The training batch of one micro-batch of one step; ``micros`` of all ranks are numbered together."""
    generator = torch.Generator().manual_seed(seed_of(seed, "batch", step, micro))
    if ramp is None:
        return data.batch_at(Place(step, micro, micros), generator)
    return data.batch_at(Place(step, micro, micros, _shares(ramp)), generator, ramp.share(step))


@lru_cache(maxsize=1)
def _shares(ramp: BatchRamp) -> tuple[float, ...]:
    return tuple(map(ramp.share, range(ramp.steps)))


def noise_seed(*, seed: int, step: int, micro: int) -> int:
    """The seed of the noise in a model (dropout, jitter) for one micro-batch, numbered as for ``batch_at``."""
    return seed_of(seed, "noise", step, micro)


@dataclass(eq=False)
class StepLoader:
    """An iterable of training batches with a position that can be saved.

    Args:
        data: samples the batches; already prepared.
        seed: the run's seed.
        accumulate: micro-batches of one rank in an optimizer step.
        rank, world: this rank, and the number of ranks that see different data.
        steps: optimizer steps in an epoch; None for one endless epoch.
        ramp: how every micro-batch grows at first; a function of the step, so that a run resumes exactly.
        ahead: draw each batch but the first in a thread, while the one before is trained on.
        gpu: where batches will go; they are sampled into pinned memory, from which a copy does not stop training. None
            for none.
    """

    data: Data
    _: KW_ONLY
    seed: int
    accumulate: int = 1
    rank: int = 0
    world: int = 1
    steps: int | None = None
    ramp: BatchRamp | None = None
    ahead: bool = False
    gpu: torch.device | None = None
    position: int = field(default=0, init=False)  # batches returned since the start of the run

    def __len__(self) -> int:
        """Batches in an epoch."""
        return ENDLESS if self.steps is None else self.steps * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        """The batches from the position to the end of its epoch.

        Raises:
            DataError: in a worker process of torch's DataLoader; each worker would return every batch.
        """
        if get_worker_info() is not None:
            raise DataError(
                "a StepLoader is a loader itself: with worker processes of a DataLoader, every worker would return "
                "every batch, and the position would not be saved; pass the StepLoader itself to Trainer.fit"
            )
        end = (self.position // len(self) + 1) * len(self)
        # Without this, the thread would pin memory for the first GPU, and take some of its memory.
        begin = None if self.gpu is None else partial(torch.cuda.set_device, self.gpu)
        thread = ThreadPoolExecutor(1, thread_name_prefix="batches", initializer=begin)
        try:
            sampled: dict[int, Future[Batch]] = {}  # by its position, which ``load_state_dict`` changes
            while self.position < end:
                batch = self.wait(sampled.get(self.position))
                self.position += 1
                if self.ahead and self.position < end:
                    sampled = {self.position: thread.submit(self._at, self.position)}
                yield batch
        finally:
            thread.shutdown(wait=False, cancel_futures=True)

    def wait(self, sampled: Future[Batch] | None) -> Batch:
        """The batch at the position: made here, or awaited from the thread. So long training stops for data."""
        return self._at(self.position) if sampled is None else sampled.result()

    def _at(self, position: int) -> Batch:
        step, micro = divmod(position, self.accumulate)
        number, micros = micro * self.world + self.rank, self.accumulate * self.world
        batch = batch_at(self.data, seed=self.seed, step=step, micro=number, micros=micros, ramp=self.ramp)
        return batch if self.gpu is None else pinned(batch)

    def state_dict(self) -> dict[str, Any]:
        """The position: optimizer steps, and micro-batches of the current one."""
        step, micro = divmod(self.position, self.accumulate)
        return {"step": step, "micro": micro}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from a saved position."""
        self.position = int(state["step"]) * self.accumulate + int(state["micro"])


def pinned(batch: Batch) -> Batch:
    """A batch in pinned memory; what is on a device already stays there."""

    def pin(tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None or tensor.device.type != "cpu" else tensor.pin_memory()

    source = batch.source and Source._make(map(pin, batch.source))
    return Batch._make([*map(pin, batch[:-1]), source])


@dataclass(eq=False)
class ValidationShard:
    """One rank's batches of the validation set: every ``world``-th.

    All ranks get the same number of batches, since a sharded model runs on all ranks together. Ranks for which the last
    round has no batch get one of padding, which counts for nothing.

    Args:
        data: already prepared.
        rank, world: this rank, and the number of ranks.
        limit: the number of batches of all ranks together; None for the whole set.
    """

    data: Data
    rank: int = 0
    world: int = 1
    limit: int | None = None

    def __iter__(self) -> Iterator[Batch]:
        """This rank's batches, always in the same order."""
        batches = islice(self.data.validation_batches(), self.limit)
        while round_ := list(islice(batches, self.world)):
            yield round_[self.rank] if self.rank < len(round_) else padding_like(round_[0])


def padding_like(batch: Batch) -> Batch:
    """A batch of padding, with the shapes of another batch."""
    source = batch.source and Source(batch.source.tokens, torch.zeros_like(batch.source.tokens, dtype=torch.bool))
    shape = batch.inputs.shape[:-1] if batch.inputs.is_floating_point() else batch.inputs.shape
    return batch._replace(
        valid=torch.zeros(shape, dtype=torch.bool, device=batch.inputs.device),
        num_bytes=None if batch.num_bytes is None else torch.zeros_like(batch.num_bytes),
        source=source,
    )
