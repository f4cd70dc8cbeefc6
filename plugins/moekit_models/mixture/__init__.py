"""The mixture of 1991: experts and a gate get the same case; the gate blends the experts' outputs.

Source: Jacobs, Jordan, Nowlan, Hinton 1991, "Adaptive Mixtures of Local Experts" (Neural Computation 3(1)).
"""

from collections.abc import Iterable
from typing import ClassVar

from moekit.spec.fields import group, option
from moekit.spec.kinds import ModelSpec, MoE


class Mixture(ModelSpec):
    """Options of the mixture."""

    gives: ClassVar[str] = "mixture"
    takes: ClassVar[str] = "cases"

    inputs: int = option(help="numbers in a case", ge=1)
    outputs: int = option(1, "numbers to predict", ge=1)
    moe: MoE = group("experts and gate")
    init_range: float = option(0.5, "initial weights and biases are uniform within plus or minus this", gt=0)

    def check(self) -> Iterable[str]:
        """Cases are no tokens, so the router must not need token ids."""
        if self.moe.router.needs_tokens:
            name = type(self.moe.router).__name__
            yield f"router {name} reads token ids, and cases have none; others: moekit ls routers"

    def offers(self) -> str:
        """Under a soft gate every expert's own output, which the errors of 1991 need; otherwise their sum alone."""
        return "mixture" if self.moe.router.form == "soft" else "prediction"
