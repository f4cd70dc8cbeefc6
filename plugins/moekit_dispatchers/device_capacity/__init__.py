"""Dropping by device: in training, each group of experts has a budget. Torch-free: options and component."""

from collections.abc import Iterable
from typing import ClassVar

from moekit.spec.fields import option, slot
from moekit.spec.kinds import DispatcherSpec, Form, RouterSpec


class DeviceCapacity(DispatcherSpec):
    """Options of dropping by device. A device is a group of consecutive experts, independent of real devices."""

    forms: ClassVar[frozenset[Form]] = frozenset({"token_choice"})
    dropless: ClassVar[bool] = False

    groups: int = option(help="G, devices; the experts are split over them evenly, in order", ge=1)
    factor: float | None = option(
        None, "budget of a device, divided by its even share of the pairs; none: 1.0, or by budget", gt=0
    )
    budget: int | None = option(None, "the budget itself, in pairs; none: by factor", ge=0)
    exempt: float = option(0.1, "share of the sequences, sampled in each pass, that lose nothing", ge=0, le=1)
    inner: DispatcherSpec = slot("dispatcher", "takes the remaining pairs")

    def causal(self) -> bool:
        """As the inner dispatcher, because evaluation drops nothing.

        In training a later token of high affinity can displace an earlier token's pair, as in DeepSeek-V2's decoder.
        """
        return self.inner.causal()

    def check(self) -> Iterable[str]:
        """The inner dispatcher must take routings by token choice; the budget is given in one way."""
        if self.budget is not None and self.factor is not None:
            yield f"budget={self.budget} is the budget itself, so factor={self.factor} has no effect: give one of them"
        if not self.forms <= self.inner.forms:
            yield (
                f"inner: dispatcher {type(self.inner).__name__} takes {', '.join(sorted(self.inner.forms))}, "
                "but must take token_choice: use grouped, loop or capacity"
            )

    def check_experts(self, num_experts: int) -> Iterable[str]:
        """Devices must hold equal numbers of experts."""
        if num_experts % self.groups:
            yield (
                f"groups={self.groups} of the dispatcher does not divide the {num_experts} experts evenly: "
                "choose a divisor for groups, or a multiple of it for count"
            )
        yield from self.inner.check_experts(num_experts)

    def check_router(self, router: RouterSpec) -> Iterable[str]:
        """Those of the inner dispatcher."""
        return self.inner.check_router(router)
