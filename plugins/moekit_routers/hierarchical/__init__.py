"""Hierarchical noisy top-k: a token chooses the best groups, then the best experts of each. Torch-free."""

from collections.abc import Iterable
from typing import ClassVar

from moekit.spec.fields import option
from moekit.spec.kinds import GroupLimit, RouterSpec


class Hierarchical(RouterSpec):
    """Options of the hierarchical router. A token runs through ``top_groups · top_k`` experts."""

    causal: ClassVar[bool] = True
    takes_bias: ClassVar[bool] = False  # a bias per expert moves load within groups, not between them
    gives_smooth_load: ClassVar[bool] = True
    branches: int = option(
        help="groups; the experts are split into them evenly, in order: the first level's choices", ge=1
    )
    top_groups: int = option(2, "groups that a token chooses", ge=1)
    top_k: int = option(2, "experts that it chooses in each of them", ge=1)
    noise_epsilon: float = option(
        1e-2, "added to the noise's standard deviation: 1e-2 in the authors' code, 0 in the paper", ge=0
    )
    zero_init: bool = option(True, "initialise all matrices to 0, so that noise alone chooses and the load is even")

    def active(self, num_experts: int) -> float:
        """``top_groups · top_k``."""
        return self.top_groups * self.top_k

    def group_limit(self) -> GroupLimit:
        """``top_k`` experts in each of ``top_groups`` groups."""
        return GroupLimit(self.branches, self.top_groups, per_group=self.top_k)

    def check(self) -> Iterable[str]:
        """There must be enough groups, and gates of both levels must have a gradient."""
        if self.top_groups > self.branches:
            yield f"top_groups={self.top_groups} is more than branches={self.branches}: lower it, or raise branches"
        for name, value in (("top_groups", self.top_groups), ("top_k", self.top_k)):
            if value == 1:
                yield (
                    f"{name}=1 makes every gate of that level the constant 1, so no gradient reaches it: set {name} "
                    ">= 2, or use noisy_topk, which has one level"
                )

    def check_experts(self, num_experts: int) -> Iterable[str]:
        """Groups must be of equal size, with at least ``top_k`` experts."""
        size, rest = divmod(num_experts, self.branches)
        if rest:
            yield (
                f"branches={self.branches} does not divide the {num_experts} experts evenly: "
                "choose a divisor for branches, or a multiple of it for count"
            )
        elif self.top_k > size:
            yield (
                f"top_k={self.top_k} is more than the {size} experts of a group "
                f"({num_experts} experts in branches={self.branches}): lower top_k or branches"
            )
