"""Whether this process is one of several that train together."""

from __future__ import annotations

import torch.distributed as dist


def is_distributed() -> bool:
    """True where ``torch.distributed`` is there and initialised, so that sums must be taken over ranks."""
    return dist.is_available() and dist.is_initialized()
