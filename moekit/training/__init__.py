"""Training with Lightning: the module, the balancers' step, data loading, checkpoints, run folders.

Names are imported on first use: Lightning takes seconds to import, and ``BalanceStep`` does not need it.
"""

from __future__ import annotations

from moekit.lazy import from_stub

__getattr__, __dir__, __all__ = from_stub(__name__, __file__)
