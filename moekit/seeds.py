"""Seeds made of what they are for, so that nothing drawn depends on what was drawn before it."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from whole numbers and names, the same on every machine and in every process."""
    digest = hashlib.sha256(",".join(str(p) for p in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def random_seed() -> int:
    """A seed drawn from torch's own generator."""
    return int(torch.randint(2**62, (), device="cpu"))  # also where models are built on the meta device


def seed_torch(seed: int) -> None:
    """Seeds torch's own generators, as ``torch.manual_seed`` does, on every device that is there.

    Where none is but the CPU, ``torch.manual_seed`` notes the stack for a GPU that may come: 150 times as long.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def seed_all(seed: int) -> None:
    """Seeds torch (every device), NumPy and Python."""
    seed_torch(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
