"""The state of every random generator that training may draw from, as plain data for a checkpoint."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from moekit.ranks import several_ranks


def rng_state() -> dict[str, Any]:
    """States of torch (CPU and the current CUDA device), NumPy and Python: tensors, numbers and lists alone."""
    kind, key, position, has_gauss, cached = np.random.get_state()
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": {
            "kind": str(kind),
            "key": torch.from_numpy(np.asarray(key).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "python": {"version": version, "words": list(words), "gauss": gauss},
    }


def rng_states() -> list[dict[str, Any]]:
    """``rng_state`` of every rank; call it on all of them."""
    if not several_ranks():
        return [rng_state()]
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, rng_state())
    return states


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Puts every generator back to a state from ``rng_state``; CUDA's where there is a device and a state for it."""
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu())
    of_numpy = state["numpy"]
    key = of_numpy["key"].cpu().numpy().astype(np.uint32)
    np.random.set_state((of_numpy["kind"], key, of_numpy["position"], of_numpy["has_gauss"], of_numpy["cached"]))
    of_python = state["python"]
    random.setstate((of_python["version"], tuple(of_python["words"]), of_python["gauss"]))


def seed_all(seed: int) -> None:
    """Seeds torch (every device), NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
