"""``strategy: {use: sharded, ep: 2}``: training on several ranks, sharded."""

from typing import ClassVar

from moekit.spec.fields import option
from moekit.spec.kinds import StrategySpec


class Sharded(StrategySpec):
    """Shards parameters, gradients and optimizer state: experts over ``ep`` ranks, all else over every rank."""

    shards: ClassVar[bool] = True
    ep: int = option(
        1, "ranks that share the routed experts of a layer; a divisor of all ranks and of the experts", ge=1
    )
    timeout: float = option(600.0, "seconds that a rank waits for the others before it fails", gt=0)
