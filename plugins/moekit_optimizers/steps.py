"""A rate that falls by a factor at given fractions of training. Torch-free."""

import itertools
from collections.abc import Callable, Iterable

from moekit.spec.fields import option
from moekit.spec.kinds import ScheduleSpec
from moekit_optimizers.phases import progress


class Steps(ScheduleSpec):
    """Options of the step schedule."""

    warmup: int = option(0, "steps of linear rise to the full rate", ge=0)
    at: list[float] = option([0.8, 0.9], "fractions of training after which the rate falls", gt=0, lt=1)
    gamma: float = option(0.316, "factor of the rate, each time", gt=0, le=1)

    def check(self) -> Iterable[str]:
        """The fractions rise."""
        if any(a >= b for a, b in itertools.pairwise(self.at)):
            yield f"at={self.at!r} must be rising fractions of training, such as [0.8, 0.9]"


def steps(spec: Steps, total_steps: int) -> Callable[[int], float]:
    """``step -> factor``: a linear warm-up, then ``gamma^n`` after n of the fractions.

    A fraction s is reached at step ``round(s · total_steps)``, counted from 0. A fall within the warm-up applies there
    too: the two factors multiply.

    *Source*: DeepSeek-AI, "DeepSeek LLM" (2024, arXiv:2401.02954), section 2.3: 31.6% after 80% of the tokens, 10%
    after 90%; DeepSeekMoE has the same, DeepSeek-V2 after 60% and 90%. Warm-up as in ``constant``.
    """
    falls = [round(fraction * total_steps) for fraction in spec.at]

    def factor(step: int) -> float:
        return progress(step, 0, spec.warmup) * spec.gamma ** sum(step >= fall for fall in falls)

    return factor
