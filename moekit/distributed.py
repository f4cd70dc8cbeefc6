"""Whether this process is a rank of a distributed run, and how it leaves one."""

from __future__ import annotations

import atexit
import gc
from weakref import WeakKeyDictionary

import torch.distributed as dist

from moekit.compat import timeout_of


def is_distributed() -> bool:
    """Whether a default process group exists, so that sums must be all-reduced."""
    return dist.is_available() and dist.is_initialized()


_host_groups: WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup] = WeakKeyDictionary()


def host_group() -> dist.ProcessGroup | None:
    """The group of all ranks for values on the CPU, by gloo; None without a process group.

    For the thread that trains alone: a thread that saves a checkpoint has a group of its own. The first call is
    collective: where the default group is NCCL's, it makes another with the same timeout.
    """
    world = dist.group.WORLD
    if not is_distributed() or world is None or dist.get_backend(world) == "gloo":
        return world
    if world not in _host_groups:
        group = dist.new_group(backend="gloo", timeout=timeout_of(world))
        assert isinstance(group, dist.ProcessGroup)
        _host_groups[world] = group
    return _host_groups[world]


def leave_process_group_at_exit() -> None:
    """Destroys the process group when Python is about to exit, while it can still run other threads.

    gloo's threads may hold the last reference to the tensors of a collective that has returned; on a busy machine, for
    long. They need Python to free them. Once Python has ended, that aborts the process (SIGABRT, ``terminate called
    without an active exception``). Lightning destroys only NCCL's groups.
    """
    atexit.unregister(_leave_process_group)
    atexit.register(_leave_process_group)


def _leave_process_group() -> None:
    gc.collect()  # first DDP's reducer: were it the last to hold the group, it would join threads that wait for Python
    if is_distributed():
        dist.destroy_process_group()
