"""AdamW. Source: Loshchilov and Hutter, "Decoupled weight decay regularization" (2019), algorithm 2."""

from collections.abc import Iterable
from typing import ClassVar

from moekit.spec.fields import option
from moekit.spec.kinds import OptimizerSpec


class AdamW(OptimizerSpec):
    """Options of AdamW. Weight matrices decay; norms and biases do not (see ``moekit_optimizers.decay``)."""

    takes_shards: ClassVar[bool] = True

    lr: float = option(3.0e-3, "learning rate at the schedule's peak", gt=0)
    betas: list[float] = option([0.9, 0.95], "decay rates of the two running means, each in [0, 1)")
    weight_decay: float = option(0.1, "decay of weight matrices, per step, times the learning rate", ge=0)
    eps: float = option(1.0e-8, "added to the root of the second mean", gt=0)

    def check(self) -> Iterable[str]:
        """Two betas, each at least 0 and below 1."""
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            yield f"betas={self.betas!r} must be two numbers, each at least 0 and below 1"
