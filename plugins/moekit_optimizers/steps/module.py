"""The step schedule, a pure function of the step. Torch-free."""

from __future__ import annotations

from collections.abc import Callable

from moekit_optimizers.phases import progress
from moekit_optimizers.steps import Steps


def steps(spec: Steps, total_steps: int) -> Callable[[int], float]:
    """``step -> factor``: a linear warm-up, then ``gamma^n`` once n of the shares lie behind.

    A share s lies behind from step ``round(s · total_steps)`` on, counted from 0. A fall within the warm-up is taken
    there too: the two multiply.

    *Source*: DeepSeek-AI, "DeepSeek LLM" (arXiv:2401.02954), section 2.3: 31.6% after 80% of the tokens, 10% after
    90%; DeepSeekMoE has the same, DeepSeek-V2 after 60% and 90%. Warm-up as in ``constant``.

    Args:
        spec: length of the warm-up, the shares and the factor.
        total_steps: optimizer steps of the run.
    """
    falls = [round(share * total_steps) for share in spec.at]

    def factor(step: int) -> float:
        return progress(step, 0, spec.warmup) * spec.gamma ** sum(step >= fall for fall in falls)

    return factor
