"""``strategy: {use: sharded, ep: 2}``: training on several ranks, sharded."""

from collections.abc import Iterable
from typing import ClassVar, Literal

from moekit.spec.fields import option
from moekit.spec.kinds import StrategySpec

SCALE_FREE = "bf16-mixed, 32-true or another precision without a loss scale; or ep: 1, dense: shard"


class Sharded(StrategySpec):
    """Shards parameters, gradients and optimizer state: experts over ``ep`` ranks, all else over every rank."""

    shards: ClassVar[bool] = True
    ep: int = option(
        1, "ranks that share the routed experts of a layer; a divisor of all ranks and of the experts", ge=1
    )
    dense: Literal["shard", "replicate"] = option(
        "shard",
        "weights that are not routed experts: sharded over every rank, or replicated as in DDP, which sends less and "
        "takes more memory",
    )
    reduce: Literal["micro_batch", "step"] = option(
        "micro_batch",
        "when gradients of sharded weights are reduced: after every micro-batch, or once in a step, which sends less "
        "and keeps whole gradients meanwhile",
    )
    timeout: float = option(600.0, "seconds that a rank waits for the others before it fails", gt=0)

    def check_precision(self, precision: str | None) -> Iterable[str]:
        """A loss scale and gradients of several layouts exclude each other."""
        if precision in ("16", "16-mixed") and (problem := self.no_loss_scale()):
            yield f"{problem}; expected {SCALE_FREE}"

    def no_loss_scale(self) -> str:
        """Why fp16 with a loss scale cannot be used in this layout, as a sentence; empty if it can.

        torch's ``GradScaler`` unscales all gradients in one call, which takes tensors of one layout alone, and agrees
        on infinite gradients within the ranks of the first one's mesh; experts have another mesh, or none.
        """
        if self.ep == 1 and self.dense == "shard":
            return ""
        layout = f"ep={self.ep}" if self.ep > 1 else "dense=replicate"
        return (
            f"16-mixed cannot be used with {layout}: its loss scale needs gradients of one layout, and experts have "
            "another"
        )
