"""Training with Lightning: the module, the balancers' step, data loading, checkpoints, run folders.

Names are imported on first use: Lightning takes seconds to import, and ``BalanceStep`` does not need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moekit.lazy import imports_in, lazy_exports

if TYPE_CHECKING:
    from moekit.training.balance import BalanceStep as BalanceStep
    from moekit.training.balance import StepLoad as StepLoad
    from moekit.training.balance import max_violation as max_violation
    from moekit.training.callbacks.checkpoint import AtomicCheckpointIO as AtomicCheckpointIO
    from moekit.training.data import StepLoader as StepLoader
    from moekit.training.module import LitMoE as LitMoE

__getattr__, __dir__, __all__ = lazy_exports(__name__, imports_in(__file__))
