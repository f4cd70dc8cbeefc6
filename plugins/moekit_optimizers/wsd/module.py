"""The warm-up, stable, decay schedule, a pure function of the step. Torch-free."""

from __future__ import annotations

from collections.abc import Callable

from moekit_optimizers.phases import progress
from moekit_optimizers.wsd import WSD


def wsd(spec: WSD, total_steps: int) -> Callable[[int], float]:
    """``step -> factor``: a linear warm-up, 1, then a straight line down to ``final`` over the last steps.

    The decay takes the last ``round(decay · total_steps)`` steps (at least one unless ``decay`` is 0, and never a
    step of the warm-up); the last step of the run has exactly ``final``, as has any later one. With no decay the
    rate stays full. A run that ends within the warm-up never reaches the full rate.

    *Source*: Hu et al., "MiniCPM" (arXiv:2404.06395), section 4; their decay is exponential, the straight line here
    is the linear cooldown of Hägele et al. (arXiv:2405.18392). Warm-up as in ``constant``.

    Args:
        spec: length of the warm-up (steps) and of the decay (share of the run), and the final fraction.
        total_steps: optimizer steps of the run.
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
