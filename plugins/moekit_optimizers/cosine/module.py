"""The cosine schedule, a pure function of the step. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable

from moekit_optimizers.cosine import Cosine
from moekit_optimizers.phases import progress


def cosine(spec: Cosine, total_steps: int) -> Callable[[int], float]:
    """``step -> factor``: a linear warm-up, then ``final + (1 - final)·(1 + cos(pi·p))/2``.

    p is the share of the steps after the warm-up that are done, so the last step of the run has exactly ``final``,
    as has any later one. A run that ends within the warm-up never reaches the full rate.

    *Source*: Loshchilov and Hutter, "SGDR" (arXiv:1608.03983), equation 5, one cycle; warm-up as in ``constant``.

    Args:
        spec: length of the warm-up and the final fraction.
        total_steps: optimizer steps of the run.
    """

    def factor(step: int) -> float:
        if step < spec.warmup:
            return progress(step, 0, spec.warmup)
        done = progress(step, spec.warmup, total_steps - spec.warmup)
        return spec.final + (1 - spec.final) * (1 + math.cos(math.pi * done)) / 2

    return factor
