"""A constant rate after a linear warm-up. Torch-free."""

from collections.abc import Callable

from moekit.spec.fields import option
from moekit.spec.kinds import ScheduleSpec
from moekit_optimizers.phases import progress


class Constant(ScheduleSpec):
    """Options of the constant schedule."""

    warmup: int = option(0, "steps of linear rise to the full rate", ge=0)


def constant(spec: Constant, total_steps: int) -> Callable[[int], float]:
    """``step -> factor``: k/warmup at the k-th step of the warm-up, then 1.

    A run that ends within the warm-up never reaches the full rate.

    *Source*: the linear warm-up ("gradual warmup") of Goyal et al., "Accurate, large minibatch SGD"
    (arXiv:1706.02677), section 2.2.
    """
    return lambda step: progress(step, 0, spec.warmup)
