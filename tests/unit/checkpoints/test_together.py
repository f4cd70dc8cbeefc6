"""The group over which ranks talk about a checkpoint: one for each process group, as patient as that is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from moekit.checkpoints.writing import all_ranks

TEXT = "naïve 木 \N{SLIGHTLY SMILING FACE}"


@contextmanager
def alone(store: Path, patience: timedelta) -> Iterator[None]:
    """A process group of this process alone, which gloo makes without a network."""
    dist.init_process_group("gloo", store=dist.FileStore(str(store), 1), rank=0, world_size=1, timeout=patience)
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_they_wait_as_long_as_the_run_does_and_meet_in_one_group(tmp_path: Path) -> None:
    """torch's own patience, half an hour, would outlast ``trainer.strategy.timeout``; and groups are dear."""
    assert all_ranks().group is None and all_ranks().gather("") == [""]
    for seconds in (77, 78):  # a later process group has another one
        with alone(tmp_path / str(seconds), timedelta(seconds=seconds)):
            ranks = all_ranks()
            assert ranks.group is not None and ranks.group is all_ranks().group is not dist.group.WORLD
            assert ranks.group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=seconds)
            assert (ranks.rank, ranks.world) == (0, 1)
            assert ranks.gather(TEXT) == [TEXT] and ranks.gather("") == [""]
