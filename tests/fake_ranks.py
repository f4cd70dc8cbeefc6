"""Ranks one after the other in one process: torch's fake process group makes every group, and sends nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch._C._distributed_c10d import FakeProcessGroup
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.testing._internal.distributed.fake_pg import FakeStore

WORLD = 4


@contextmanager
def as_rank(rank: int) -> Iterator[None]:
    """This process is one of four."""
    options = FakeProcessGroup.Options()
    dist.init_process_group("fake", rank=rank, world_size=WORLD, store=FakeStore(), pg_options=options)
    try:
        yield
    finally:
        dist.destroy_process_group()
        _clear_sharding_prop_cache()  # torch would take the next rank's meshes for this one's: they are equal
