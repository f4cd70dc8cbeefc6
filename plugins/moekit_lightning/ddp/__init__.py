"""``strategy: ddp``: every rank holds the whole model."""

from moekit.spec.fields import option
from moekit.spec.kinds import StrategySpec


class DDP(StrategySpec):
    """Distributed data parallelism, as Lightning's ``DDPStrategy``."""

    find_unused_parameters: bool = option(
        False, "search each backward pass for parameters without a gradient, as those of experts without tokens"
    )
    static_graph: bool = option(False, "every step uses the same parameters, in the same order")
    gradient_as_bucket_view: bool = option(False, "gradients share the memory of what is sent")
    timeout: float = option(1800.0, "seconds that a rank waits for the others before it fails", gt=0)
