"""DeepSeek-V3's complementary loss: prevents extreme imbalance within a sequence. Torch-free."""

from typing import ClassVar, Literal

from moekit.spec.fields import option
from moekit.spec.kinds import BalancerSpec, Form


class SequenceBalance(BalancerSpec):
    """Options of the sequence-wise balance loss."""

    at_balance: ClassVar[float | None] = 1.0
    forms: ClassVar[frozenset[Form]] = frozenset({"token_choice"})
    weight: float = option(1e-4, "coefficient of the loss, per layer", ge=0)
    count: Literal["routed", "affinity"] = option(
        "routed", "what f counts: the experts chosen, or the k of highest affinity (no bias, no groups), as printed"
    )
