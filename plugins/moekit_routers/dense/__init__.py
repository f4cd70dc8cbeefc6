"""The dense gate: every expert works for every token, weighted by a softmax. Torch-free: options and component."""

from typing import ClassVar

from moekit.spec.fields import option
from moekit.spec.kinds import Form, RouterSpec


class Dense(RouterSpec):
    """Options of the dense router."""

    causal: ClassVar[bool] = True
    form: ClassVar[Form] = "soft"
    takes_bias: ClassVar[bool] = False
    bias: bool = option(True, "whether the gate has a learned bias per expert")

    def active(self, num_experts: int) -> float:
        """All of them."""
        return num_experts
