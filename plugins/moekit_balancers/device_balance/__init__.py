"""DeepSeekMoE's device-level loss: loads of devices should be even, those of experts need not be. Torch-free."""

from collections.abc import Iterable
from typing import ClassVar, Literal

from moekit.spec.fields import option
from moekit.spec.kinds import BalancerSpec, Form, RouterSpec
from moekit_balancers.devices import uneven_devices


class DeviceBalance(BalancerSpec):
    """Options of the device-level balance loss."""

    at_balance: ClassVar[float | None] = 1.0
    forms: ClassVar[frozenset[Form]] = frozenset({"token_choice"})
    groups: int = option(help="devices; the experts are split over them evenly, in order", ge=1)
    weight: float = option(0.05, "coefficient of the loss, per layer", ge=0)
    scope: Literal["sequence", "micro_batch"] = option(
        "micro_batch", "what is balanced: each sequence (DeepSeek-V2), or one forward pass (DeepSeekMoE)"
    )

    def check_router(self, router: RouterSpec, num_experts: int) -> Iterable[str]:
        """Devices must hold equal numbers of experts."""
        yield from uneven_devices(self.groups, num_experts)
