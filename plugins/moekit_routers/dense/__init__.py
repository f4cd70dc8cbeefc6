"""The dense gate: every expert works for every token, weighted by a softmax. Torch-free: options and component."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moekit.component import Component
from moekit.spec.fields import option
from moekit.spec.kinds import Form, RouterSpec


@dataclass(frozen=True, kw_only=True)
class Dense(RouterSpec):
    """Options of the dense router."""

    form: ClassVar[Form] = "soft"
    takes_bias: ClassVar[bool] = False
    bias: bool = option(True, "whether the gate has a learned bias per expert")

    def active(self, num_experts: int) -> float:
        """All of them."""
        return num_experts


COMPONENT = Component(
    name="dense",
    spec=Dense,
    target="moekit_routers.dense.module:DenseRouter",
    summary="softmax over all experts; every expert works for every token",
    paper="Jacobs, Jordan, Nowlan, Hinton 1991",
)
