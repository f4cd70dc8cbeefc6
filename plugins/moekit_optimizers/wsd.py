"""Warm-up, stable, decay: the full rate, then a linear decay over the last steps. Torch-free."""

from collections.abc import Callable

from moekit.spec.fields import option
from moekit.spec.kinds import ScheduleSpec
from moekit_optimizers.phases import progress


class WSD(ScheduleSpec):
    """Options of the warm-up, stable, decay schedule."""

    warmup: int = option(0, "steps of linear rise to the full rate", ge=0)
    decay: float = option(0.2, "length of the decay, as a fraction of training", ge=0, le=1)
    final: float = option(0.1, "rate at the last step, as a fraction of the full rate", ge=0, le=1)


def wsd(spec: WSD, total_steps: int) -> Callable[[int], float]:
    """``step -> factor``: a linear warm-up, 1, then a straight line down to ``final`` over the last steps.

    The decay takes the last ``round(decay · total_steps)`` steps (at least one unless ``decay`` is 0, and never a
    step of the warm-up); the last step of the run, and any later one, has exactly ``final``. With no decay the rate
    stays full. A run that ends within the warm-up never reaches the full rate.

    *Source*: Hu et al., "MiniCPM" (2024, arXiv:2404.06395), section 4; their decay is exponential, the straight line
    here is the linear cooldown of Hägele et al. (2024, arXiv:2405.18392). Warm-up as in ``constant``.
    """
    wanted = max(round(spec.decay * total_steps), 1) if spec.decay > 0 else 0
    length = max(min(wanted, total_steps - spec.warmup), 0)
    start = total_steps - length

    def factor(step: int) -> float:
        if step < spec.warmup:
            return progress(step, 0, spec.warmup)
        done = progress(step, start, length) if length else 0.0
        return spec.final + (1 - spec.final) * (1 - done)

    return factor
