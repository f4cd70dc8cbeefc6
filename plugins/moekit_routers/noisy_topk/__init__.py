"""Noisy top-k: each token takes the k best experts by logits with learned noise. Torch-free: options and component."""

from collections.abc import Iterable
from typing import ClassVar

from moekit.spec.fields import option
from moekit.spec.kinds import RouterSpec


class NoisyTopK(RouterSpec):
    """Options of the noisy top-k router. Noise is for training alone."""

    takes_bias: ClassVar[bool] = True
    causal: ClassVar[bool] = True
    gives_smooth_load: ClassVar[bool] = True
    top_k: int = option(help="experts a token runs through", ge=1)
    noise_epsilon: float = option(
        1e-2, "added to the noise's standard deviation: 1e-2 in the authors' code, 0 in the paper", ge=0
    )
    zero_init: bool = option(True, "initialise both matrices to 0, so that noise alone chooses and the load is even")

    def active(self, num_experts: int) -> float:
        """``top_k``."""
        return self.top_k

    def check(self) -> Iterable[str]:
        """Gates must have a gradient."""
        if self.top_k == 1:
            yield (
                "top_k=1 with a softmax over the one chosen makes every gate the constant 1, so no gradient reaches "
                "the router: set top_k >= 2, or use topk with score_over=all"
            )

    def check_experts(self, num_experts: int) -> Iterable[str]:
        """There must be at least ``top_k`` experts."""
        if self.top_k > num_experts:
            yield f"top_k={self.top_k} is more than the {num_experts} experts there are: lower top_k, or raise count"
