"""The router z-loss of ST-MoE: keeps router logits small. Torch-free."""

from typing import ClassVar

from moekit.spec.fields import option
from moekit.spec.kinds import ALL_FORMS, BalancerSpec, Form


class ZLoss(BalancerSpec):
    """Options of the router z-loss."""

    forms: ClassVar[frozenset[Form]] = ALL_FORMS
    at_balance: ClassVar[float | None] = (
        None  # (ln E)² at zero logits: it depends on E, and on the logits' common level
    )
    weight: float = option(1e-3, "coefficient of the loss, per layer", ge=0)
