"""Keys as sorting likes them."""

from __future__ import annotations

import torch
from torch import Tensor


def narrow(key: Tensor, largest: int) -> Tensor:
    """The keys in the narrowest type that holds them: sorting 16 bits takes a quarter of the time of 64."""
    return key.to(torch.int16 if largest < 2**15 else torch.int32)
