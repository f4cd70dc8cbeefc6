"""Whether this process is a rank of a distributed run, and how it leaves one."""

from __future__ import annotations

import atexit
import gc

import torch.distributed as dist


def is_distributed() -> bool:
    """Whether a default process group exists, so that sums must be all-reduced."""
    return dist.is_available() and dist.is_initialized()


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
