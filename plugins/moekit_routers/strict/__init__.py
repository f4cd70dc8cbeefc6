"""Strictly balanced gating: in training each expert keeps its best tokens of the batch. Torch-free."""

from collections.abc import Iterable
from typing import ClassVar

from moekit.spec.fields import option
from moekit.spec.kinds import RouterSpec


class Strict(RouterSpec):
    """Options of the strictly balanced router."""

    takes_bias: ClassVar[bool] = False  # the load is even by construction
    causal: ClassVar[bool] = False  # in training experts choose among all tokens of the batch, including later ones
    lists_all: ClassVar[bool] = True
    top_k: int = option(help="experts of a token, on average: each expert keeps this · tokens / experts", ge=1)
    threshold_weight: float = option(1.0, "coefficient of the loss that trains the thresholds of evaluation", ge=0)

    def active(self, num_experts: int) -> float:
        """``top_k``, on average; a single token may have none, or all."""
        return self.top_k

    def check_experts(self, num_experts: int) -> Iterable[str]:
        """No expert can keep more tokens than there are."""
        if self.top_k > num_experts:
            yield f"top_k={self.top_k} is more than the {num_experts} experts there are: lower top_k, or raise count"
