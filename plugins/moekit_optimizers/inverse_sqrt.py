"""A rate that falls with one over the square root of the step. Torch-free."""

import math
from collections.abc import Callable

from moekit.spec.fields import option
from moekit.spec.kinds import ScheduleSpec


class InverseSqrt(ScheduleSpec):
    """Options of the inverse square root schedule."""

    warmup: int = option(0, "steps of linear rise to the full rate, from where it falls", ge=0)


def inverse_sqrt(spec: InverseSqrt, total_steps: int) -> Callable[[int], float]:
    """``step -> factor``: ``min(k/w, sqrt(w/k))`` at the k-th step, w the length of the warm-up.

    1 at the end of the warm-up, half of it after four times as many steps. Without a warm-up, ``1/sqrt(k)``.

    *Source*: Vaswani et al., "Attention is all you need" (2017, arXiv:1706.03762), equation 3, with the full rate in
    place of ``dim^-.5 · w^-.5``.
    """
    warmup = max(spec.warmup, 1)

    def factor(step: int) -> float:
        done = (step + 1) / warmup
        return min(done, 1 / math.sqrt(done))

    return factor
