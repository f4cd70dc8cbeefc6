"""Training with Lightning: the module, the balancers' step, sampling, checkpoints, run folders.

Names are imported on first use: Lightning takes seconds to import, and ``BalanceStep`` does not need it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moekit.training.balance import BalanceStep as BalanceStep
    from moekit.training.balance import StepLoad as StepLoad
    from moekit.training.checkpoint import AtomicCheckpointIO as AtomicCheckpointIO
    from moekit.training.module import LitMoE as LitMoE
    from moekit.training.sampling import StepLoader as StepLoader

_MODULE_OF = {
    "AtomicCheckpointIO": "moekit.training.checkpoint",
    "BalanceStep": "moekit.training.balance",
    "LitMoE": "moekit.training.module",
    "StepLoad": "moekit.training.balance",
    "StepLoader": "moekit.training.sampling",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'moekit.training' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
