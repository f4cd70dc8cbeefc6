"""Whether this process is a rank of a distributed run."""

from __future__ import annotations

import torch.distributed as dist


def is_distributed() -> bool:
    """Whether a default process group exists, so that sums must be all-reduced."""
    return dist.is_available() and dist.is_initialized()
