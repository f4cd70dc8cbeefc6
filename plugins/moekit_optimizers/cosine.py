"""Half a cosine from the full rate to a final one. Torch-free."""

import math
from collections.abc import Callable

from moekit.spec.fields import option
from moekit.spec.kinds import ScheduleSpec
from moekit_optimizers.phases import progress


class Cosine(ScheduleSpec):
    """Options of the cosine schedule."""

    warmup: int = option(0, "steps of linear rise to the full rate", ge=0)
    final: float = option(0.1, "rate at the last step, as a fraction of the full rate", ge=0, le=1)


def cosine(spec: Cosine, total_steps: int) -> Callable[[int], float]:
    """``step -> factor``: a linear warm-up, then ``final + (1 - final)·(1 + cos(pi·p))/2``.

    p is the fraction of the steps after the warm-up that is done, so that the last step of the run, and any later one,
    has exactly ``final``. A run that ends within the warm-up never reaches the full rate.

    *Source*: Loshchilov and Hutter, "SGDR" (2017, arXiv:1608.03983), equation 5, without restarts; warm-up as in
    ``constant``.
    """

    def factor(step: int) -> float:
        if step < spec.warmup:
            return progress(step, 0, spec.warmup)
        done = progress(step, spec.warmup, total_steps - spec.warmup)
        return spec.final + (1 - spec.final) * (1 + math.cos(math.pi * done)) / 2

    return factor
