"""Shazeer's two losses: the squared coefficient of variation of importance, and of load. Torch-free."""

from collections.abc import Iterable
from typing import ClassVar, Literal

from moekit.spec.fields import option
from moekit.spec.kinds import ALL_FORMS, BalancerSpec, Form, RouterSpec


class CVSquared(BalancerSpec):
    """Options of the CV² loss."""

    forms: ClassVar[frozenset[Form]] = ALL_FORMS
    at_balance: ClassVar[float | None] = 0.0
    of: Literal["importance", "load"] = option(
        "importance",
        "what is balanced: importance (gates summed per expert), or load (the expected number of tokens per expert, "
        "which a noisy router gives in training)",
    )
    weight: float = option(
        0.1, "coefficient of the loss, per layer (the paper: 0.1 in language models, 0.01 in MT)", ge=0
    )

    def check_router(self, router: RouterSpec, num_experts: int) -> Iterable[str]:
        """Only noisy routers give a differentiable load."""
        if self.of == "load" and not router.gives_smooth_load:
            yield (
                f"of=load needs a differentiable load, which {type(router).__name__} does not give (counts have no "
                "gradient): set of=importance, or use the router noisy_topk or hierarchical"
            )
