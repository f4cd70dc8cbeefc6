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


_host_groups: WeakKeyDictionary[dist.ProcessGroup, dict[str, dist.ProcessGroup]] = WeakKeyDictionary()


def host_group(thread: str = "") -> dist.ProcessGroup | None:
    """The group of all ranks for values on the CPU, by gloo; None without a process group.

    Each thread that is named has a group of its own; the one that trains has no name. The first call is collective: but
    where the thread that trains has gloo's default group, it makes a group with the default group's timeout.
    """
    world = dist.group.WORLD
    if not is_distributed() or world is None or (not thread and dist.get_backend(world) == "gloo"):
        return world
    groups = _host_groups.setdefault(world, {})
    if thread not in groups:  # torch's default timeout may be longer than the run's
        group = dist.new_group(backend="gloo", timeout=timeout_of(world))
        assert isinstance(group, dist.ProcessGroup)
        groups[thread] = group
    return groups[thread]


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
