"""The router z-loss of ST-MoE: keeps router logits small. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moekit.component import Component
from moekit.spec.fields import option
from moekit.spec.kinds import BalancerSpec


@dataclass(frozen=True, kw_only=True)
class ZLoss(BalancerSpec):
    """Options of the router z-loss."""

    at_balance: ClassVar[float | None] = (
        None  # (ln E)² at zero logits: it depends on E, and on the logits' common level
    )
    weight: float = option(1e-3, "coefficient of the loss, per layer", ge=0)


COMPONENT = Component(
    name="z_loss",
    spec=ZLoss,
    target="moekit_balancers.z_loss.module:RouterZLoss",
    summary="loss mean (logsumexp of the router's logits)²: keeps them small, and bf16 exact; (ln E)² at zero logits",
    paper="ST-MoE 2022",
)
