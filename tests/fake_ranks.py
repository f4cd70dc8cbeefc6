"""Simulated ranks in one process: torch's fake process group creates every group and sends nothing."""

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
    """In this context, this process is one of four ranks."""
    options = FakeProcessGroup.Options()
    dist.init_process_group("fake", rank=rank, world_size=WORLD, store=FakeStore(), pg_options=options)
    try:
        yield
    finally:
        dist.destroy_process_group()
        _clear_sharding_prop_cache()  # it would confuse the next rank's meshes with this one's
