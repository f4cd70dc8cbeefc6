"""The load-balance loss of Switch and GShard: share of tokens times mean affinity. Torch-free."""

from collections.abc import Iterable
from typing import ClassVar, Literal

from moekit.spec.fields import option
from moekit.spec.kinds import BalancerSpec, Form, RouterSpec


class LoadBalance(BalancerSpec):
    """Options of the load-balance loss."""

    at_balance: ClassVar[float | None] = 1.0
    forms: ClassVar[frozenset[Form]] = frozenset({"token_choice"})
    weight: float = option(1e-2, "coefficient of the loss, per layer", ge=0)
    scope: Literal["sequence", "micro_batch", "global_batch", "step"] = option(
        "micro_batch",
        "what is balanced: each sequence, one pass, one pass of all ranks, or the last optimizer step",
    )
    count: Literal["all", "first"] = option(
        "all", "the choices that f counts: all K of a token, or the first alone (GShard, GLaM, ST-MoE)"
    )
    normalize: bool = option(
        True, "divide a token's affinities by their sum (no effect on a softmax); false: raw sigmoids, as Wang et al."
    )

    def check(self) -> Iterable[str]:
        """The load of a step counts all choices."""
        if self.count == "first" and self.scope == "step":
            yield (
                "count=first with scope=step: the load of a step counts all choices; set count=all, or "
                "scope=global_batch"
            )

    def check_router(self, router: RouterSpec, num_experts: int) -> Iterable[str]:
        """A first choice is one of several."""
        if self.count == "first" and router.lists_all:
            yield (
                f"count=first: router {type(router).__name__} lists all experts for each token, so that the first is "
                "none of its choice; set count=all"
            )
