"""This machine: the name of its processor, and how its C library keeps freed memory. Torch-free."""

from __future__ import annotations

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
SET_BY_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Makes the C library keep freed memory for the next arrays of this process; only with glibc.

    A training step allocates and frees the same large arrays again and again. The C library returns them to the system
    at once; the next step must then fetch and clear them again, page by page. ``docs/measurements.md`` has the cost.

    The process then never shrinks. Nothing changes if the user has set one of the C library's own variables
    (``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_``, ``GLIBC_TUNABLES``).

    Returns:
        Whether the setting was changed.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in SET_BY_USER):
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)) and bool(libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1))


def processor_name() -> str:
    """The processor's name, as the system gives it."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        return name
