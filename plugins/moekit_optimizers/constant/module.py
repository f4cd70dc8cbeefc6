"""The constant schedule, a pure function of the step. Torch-free."""

from __future__ import annotations

from collections.abc import Callable

from moekit_optimizers.constant import Constant
from moekit_optimizers.phases import progress


def constant(spec: Constant, total_steps: int) -> Callable[[int], float]:
    """``step -> factor``: k/warmup at the k-th step of the warm-up, then 1.

    *Source*: the linear warm-up of Goyal et al., "Accurate, large minibatch SGD" (arXiv:1706.02677), section 2.2.

    Args:
        spec: length of the warm-up; a run that ends within it never reaches the full rate.
        total_steps: optimizer steps of the run; not used.
    """
    return lambda step: progress(step, 0, spec.warmup)
