"""``strategy: ddp``: every rank holds the whole model."""

from collections.abc import Iterable

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

    def check_accumulation(self, micro_batches: int) -> Iterable[str]:
        """torch's reducer fails if it has a static graph, and the first backward pass sums no gradients over ranks."""
        if self.static_graph and micro_batches > 1:
            given = f"accumulate_grad_batches={micro_batches}"
            yield f"strategy ddp: static_graph cannot be used with {given}; expected static_graph=false"
