"""Adafactor: second moments kept as sums over rows and columns, steps relative to the size of the weights.

Source: Shazeer and Stern 2018 (arXiv 1804.04235), algorithms 4 and 5, as ``torch.optim.Adafactor`` computes them, on
one device or sharded. Switch, GLaM and ST-MoE train with it. Reference implementation: ``naive.py``. torch differs from
the paper: its ``eps`` bounds the means of squared gradients from below, while the paper adds it to each of them.
"""

from collections.abc import Iterable
from typing import ClassVar

from moekit.spec.fields import option
from moekit.spec.kinds import OptimizerSpec

SMALLEST_EPS = 1.0e-18  # its square is still a normal number of fp32


class Adafactor(OptimizerSpec):
    """Options of Adafactor. At step t a weight changes by about ``max(eps[1], RMS(weights)) · min(lr, 1/sqrt(t))``.

    So ``lr`` is relative, and with the ``constant`` schedule .01 falls as 1/sqrt(t) from step 10^4.
    """

    takes_shards: ClassVar[bool] = True

    lr: float = option(1.0e-2, "the largest relative step, at the schedule's peak; never more than 1/sqrt(step)", gt=0)
    decay: float = option(0.8, "c of the running means' rate 1 - t^-c", gt=0, le=1)
    clip: float = option(1.0, "d: the largest root mean square of an update before the rate (ST-MoE tried .1)", gt=0)
    weight_decay: float = option(0.0, "decay of weight matrices, per step, times the learning rate", ge=0)
    eps: list[float] = option([1.0e-16, 1.0e-3], "least mean squared gradient (as torch bounds it); least weight RMS")

    def check(self) -> Iterable[str]:
        """Two epsilons; the first one's square must not vanish in fp32, or a row without gradient would be 0/0."""
        if len(self.eps) != 2 or self.eps[0] < SMALLEST_EPS or self.eps[1] < 0:
            yield f"eps={self.eps!r} must be two numbers: the first >= {SMALLEST_EPS:g}, the second >= 0"
