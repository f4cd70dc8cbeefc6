"""SparseMixer: one expert after another, each sampled in training among those whose logit is close to the best one.

Torch-free: options and component.
"""

from collections.abc import Iterable
from typing import ClassVar

from moekit.spec.fields import option
from moekit.spec.kinds import RouterSpec


class SparseMixer(RouterSpec):
    """Options of the SparseMixer router. Sampling is for training alone."""

    causal: ClassVar[bool] = True

    top_k: int = option(2, "experts a token runs through, chosen one after another", ge=1)
    jitter: float = option(
        0.01, "r: experts are close to the best if they are below it by at most 2r of the larger of both logits", ge=0
    )

    def active(self, num_experts: int) -> float:
        """``top_k``."""
        return self.top_k

    def check_experts(self, num_experts: int) -> Iterable[str]:
        """There must be at least ``top_k`` experts."""
        if self.top_k > num_experts:
            yield f"top_k={self.top_k} is more than the {num_experts} experts there are: lower top_k, or raise count"
