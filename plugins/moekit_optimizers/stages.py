"""A rate that passes through stages: held, moved in a line or along a cosine. Torch-free."""

import itertools
import math
from collections.abc import Callable, Iterable

from moekit.spec.fields import option
from moekit.spec.kinds import ScheduleSpec
from moekit_optimizers.phases import progress

SHAPES = ("constant", "linear", "cosine")


class Stages(ScheduleSpec):
    """Options of the schedule by stages. Entry i of each list belongs to stage i; the last stage has no ``until``."""

    warmup: int = option(0, "steps of linear rise to the full rate", ge=0)
    until: list[float] = option([], "fractions of training at which the stages end; the last ends with it", gt=0, lt=1)
    to: list[float] = option([1.0], "rate at the end of each stage, as a fraction of the full rate", ge=0, le=1)
    shape: list[str] = option(
        ["constant"], "how each stage gets there: constant (at once, then held), linear or cosine"
    )

    def check(self) -> Iterable[str]:
        """As many of each as there are stages; fractions rise; shapes are known."""
        if len(self.to) != len(self.shape) or len(self.until) != len(self.to) - 1:
            yield (
                f"until has {len(self.until)} entries, to {len(self.to)} and shape {len(self.shape)}; n stages have n "
                "entries in to and in shape, and n - 1 in until"
            )
        if any(a >= b for a, b in itertools.pairwise(self.until)):
            yield f"until={self.until!r} must be rising fractions of training, such as [0.6, 0.9]"
        unknown = [shape for shape in self.shape if shape not in SHAPES]
        if unknown:
            yield f"shape={self.shape!r} has {', '.join(unknown)}; the choices are {', '.join(SHAPES)}"


def stages(spec: Stages, total_steps: int) -> Callable[[int], float]:
    """``step -> factor``: a linear warm-up, times the rate of the stage that the step is in.

    A fraction s is reached at step ``round(s · total_steps)``, counted from 0. A ``linear`` or ``cosine`` stage starts
    from the rate of the stage before (the first: 1) and has its own at its last step. After the run it stays.

    *Source*: DeepSeek-AI, "DeepSeek-V3" (2024, arXiv:2412.19437), section 4.2: constant, half a cosine to a tenth,
    then two constants. Warm-up as in ``constant``.
    """
    ends = [*(round(fraction * total_steps) for fraction in spec.until), total_steps]

    def factor(step: int) -> float:
        stage = min(sum(step >= end for end in ends), len(ends) - 1)
        start, rate = (ends[stage - 1], spec.to[stage - 1]) if stage else (0, 1.0)
        done = progress(step, start, ends[stage] - start)
        if spec.shape[stage] == "constant":
            done = 1.0
        elif spec.shape[stage] == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return progress(step, 0, spec.warmup) * (rate + (spec.to[stage] - rate) * done)

    return factor
