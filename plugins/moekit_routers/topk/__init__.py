"""Top-k routing: each token takes the k experts of highest score. Torch-free: options and component.

One router serves many papers, which differ in a few options: which score, whether it is computed before or after the
choice, whether groups limit the choice, whether gates are renormalised and scaled.
"""

from collections.abc import Iterable
from typing import ClassVar, Literal

from moekit.spec.fields import option
from moekit.spec.kinds import GroupLimit, RouterSpec


class TopK(RouterSpec):
    """Options of the top-k router. Gates are renormalised first, then scaled: two independent switches."""

    takes_bias: ClassVar[bool] = True
    causal: ClassVar[bool] = True

    top_k: int = option(help="experts a token runs through", ge=1)
    score: Literal["softmax", "sigmoid"] = option("softmax", "turns logits into affinities")
    score_over: Literal["all", "chosen"] = option(
        "all", "all: score every expert, then choose; chosen: choose by logits, then score those chosen"
    )
    groups: int = option(1, "groups; the experts are split into them evenly, in order", ge=1)
    top_groups: int | None = option(None, "groups a token may choose from; required if groups > 1", ge=1)
    group_score: Literal["max", "top2_sum"] = option(
        "max", "ranks groups by their best expert, or by the sum of their two best, selection bias included"
    )
    renormalize: bool = option(False, "divide a token's gates by their sum")
    scale: float = option(1.0, "multiplies the gates, after renormalising", gt=0)
    bias: bool = option(False, "whether the logits have a learned bias per expert")
    input_jitter: float = option(
        0.0, "in training, the router's input (not the experts') is multiplied by U(1 - this, 1 + this)", ge=0, lt=1
    )
    send_threshold: float | None = option(
        None,
        "in training, a choice after the first with a gate (before scale) below this is sent with probability "
        "gate / this; in evaluation every choice is sent",
        gt=0,
        le=1,
    )

    def active(self, num_experts: int) -> float:
        """``top_k``."""
        return self.top_k

    def group_limit(self) -> GroupLimit:
        """``top_groups`` of the groups."""
        return GroupLimit(self.groups, self.top_groups or self.groups)

    def check(self) -> Iterable[str]:
        """Groups must be consistent, and gates must have a gradient."""
        if self.groups > 1 and self.top_groups is None:
            yield f"groups={self.groups} without top_groups: say how many of them a token may choose from"
        if self.top_groups is not None and self.top_groups > self.groups:
            yield f"top_groups={self.top_groups} is more than groups={self.groups}"
        if self.top_k == 1 and self.renormalize:
            yield (
                "top_k=1 with renormalize=true makes every gate the constant 1, so no gradient reaches the router: "
                "set renormalize=false, or top_k >= 2"
            )
        elif self.top_k == 1 and self.score == "softmax" and self.score_over == "chosen":
            yield (
                "top_k=1 with a softmax over the one chosen makes every gate the constant 1, so no gradient reaches "
                "the router: set score_over=all or score=sigmoid, or top_k >= 2"
            )
        if self.top_k == 1 and self.send_threshold is not None:
            yield (
                f"send_threshold={self.send_threshold} is for choices after the first, and top_k=1 makes no others: "
                "remove it, or set top_k >= 2"
            )

    def check_experts(self, num_experts: int) -> Iterable[str]:
        """Groups must divide the experts and hold enough of them."""
        size, rest = divmod(num_experts, self.groups)
        top_groups = self.top_groups or self.groups
        if rest:
            yield (
                f"groups={self.groups} does not divide the {num_experts} experts evenly: "
                "choose a divisor for groups, or a multiple of it for count"
            )
        elif self.top_k > top_groups * size:
            held = f"that top_groups={top_groups} of groups={self.groups} hold" if self.groups > 1 else "there are"
            more = "top_groups or count" if self.groups > 1 else "count"
            yield (
                f"top_k={self.top_k} is more than the {top_groups * size} experts {held}: lower top_k, or raise {more}"
            )
        if not rest and self.groups > 1 and self.group_score == "top2_sum" and size < 2:
            yield (
                f"group_score=top2_sum needs two experts or more in a group; groups={self.groups} of "
                f"{num_experts} experts hold {size}: use group_score=max"
            )
