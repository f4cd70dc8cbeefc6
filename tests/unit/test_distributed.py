"""A process group ends before Python does, and with it the threads that still need Python; and the group of hosts."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from moekit.compat import timeout_of
from moekit.distributed import host_group, leave_process_group_at_exit


def gloo_threads() -> int:
    """How many threads of this process are gloo's."""
    names = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
    return sum("gloo" in name for name in names)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed in /proc")
def test_no_thread_of_a_process_group_is_left_when_python_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a thread frees the tensors of a collective that has returned, and aborts the process if it is too late."""
    registered: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", registered.append)
    before = gloo_threads()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model = DistributedDataParallel(nn.Linear(1, 1))
    model(torch.ones(1, 1)).sum().backward()
    model.itself = [model]  # as a trainer holds it: only garbage collection frees it
    del model
    assert gloo_threads() > before
    leave_process_group_at_exit()
    (leave,) = (each for each in registered if each.__module__ == "moekit.distributed")  # torch registers too
    leave()
    assert not dist.is_initialized() and gloo_threads() == before
    leave()  # a run of one process has no group


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_hosts_agree_over_gloo_whatever_the_devices_use(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over one group, made once; it waits for others as long as the run says. A background save has another."""
    assert host_group() is None
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=77))
    try:
        monkeypatch.setattr(dist, "get_backend", lambda group: backend)
        group = host_group()
        assert group is not None and timeout_of(group) == timedelta(seconds=77)
        assert (group is dist.group.WORLD) == (backend == "gloo") and host_group() is group
        assert host_group("checkpoints") not in (None, group)
    finally:
        dist.destroy_process_group()
