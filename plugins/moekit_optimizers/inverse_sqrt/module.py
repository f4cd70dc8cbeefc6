"""The inverse square root schedule, a pure function of the step. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable

from moekit_optimizers.inverse_sqrt import InverseSqrt


def inverse_sqrt(spec: InverseSqrt, total_steps: int) -> Callable[[int], float]:
    """``step -> factor``: ``min(k/w, sqrt(w/k))`` at the k-th step, w the length of the warm-up.

    1 at the end of the warm-up, half of it after four times as many steps. Without a warm-up, ``1/sqrt(k)``.

    *Source*: Vaswani et al., "Attention is all you need" (arXiv:1706.03762), equation 3, which has
    ``dim^-.5 · w^-.5`` for the full rate.

    Args:
        spec: length of the warm-up.
        total_steps: optimizer steps of the run; not used.
    """
    warmup = max(spec.warmup, 1)

    def factor(step: int) -> float:
        done = (step + 1) / warmup
        return min(done, 1 / math.sqrt(done))

    return factor
