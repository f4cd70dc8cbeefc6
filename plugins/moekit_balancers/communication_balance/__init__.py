"""DeepSeek-V2's communication loss: every device should receive the same number of tokens. Torch-free."""

from collections.abc import Iterable
from typing import ClassVar

from moekit.spec.fields import option
from moekit.spec.kinds import BalancerSpec, Form, RouterSpec
from moekit_balancers.devices import uneven_devices


class CommunicationBalance(BalancerSpec):
    """Options of the communication balance loss."""

    forms: ClassVar[frozenset[Form]] = frozenset({"token_choice"})
    at_balance: ClassVar[float | None] = None  # 1 where each token uses exactly top_groups devices, less where fewer
    groups: int = option(help="devices; the experts are split over them evenly, in order", ge=1)
    top_groups: int = option(help="devices a token may be sent to (the router's top_groups)", ge=1)
    weight: float = option(0.02, "coefficient of the loss, per layer", ge=0)

    def check(self) -> Iterable[str]:
        """A token uses no more devices than there are."""
        if self.top_groups > self.groups:
            yield f"top_groups={self.top_groups} is more than groups={self.groups}"

    def check_router(self, router: RouterSpec, num_experts: int) -> Iterable[str]:
        """Devices must hold equal numbers of experts, and be as many for a token as the router says."""
        yield from uneven_devices(self.groups, num_experts)
        limit = router.group_limit()
        if limit.groups == self.groups and limit.top_groups != self.top_groups:
            yield f"top_groups={self.top_groups} is not the router's top_groups={limit.top_groups}: give both the same"
