"""Hash routing: a fixed table sends each token id to an expert; nothing is learned. Torch-free: options alone."""

from collections.abc import Iterable
from typing import ClassVar

from moekit.spec.fields import option
from moekit.spec.kinds import RouterSpec


class Hash(RouterSpec):
    """Options of the hash router."""

    causal: ClassVar[bool] = True
    takes_bias: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = True
    vocab: int = option(help="tokens in the vocabulary: ${model.vocab}", ge=1)
    seed: int = option(0, "of the table; layers of the same seed have the same table", ge=0)

    def active(self, num_experts: int) -> float:
        """One."""
        return 1

    def check_experts(self, num_experts: int) -> Iterable[str]:
        """Every expert gets a token id."""
        if self.vocab < num_experts:
            yield f"vocab={self.vocab} gives no token id to some of the {num_experts} experts: lower count"
