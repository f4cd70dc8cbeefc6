"""Expert parallelism: ranks share the experts of a layer and exchange tokens. Torch-free: options and component."""

from collections.abc import Iterable

from moekit.spec.kinds import PAIR_FORMS, ExpertParallelSpec, Form, RouterSpec


class ExpertParallel(ExpertParallelSpec):
    """Options of expert parallelism. In one process it behaves as the dispatcher ``local``."""

    @property
    def forms(self) -> frozenset[Form]:  # type: ignore[override] # a class variable elsewhere; here it depends on the options
        """Those of the local dispatcher that list pairs; soft routings would need every token on every rank."""
        return self.local.forms & PAIR_FORMS

    @property
    def dropless(self) -> bool:  # type: ignore[override]
        """As the local dispatcher."""
        return self.local.dropless

    def causal(self) -> bool:
        """As the local dispatcher."""
        return self.local.causal()

    def check(self) -> Iterable[str]:
        """The local dispatcher must take pairs, and run on one rank."""
        if isinstance(self.local, ExpertParallelSpec):
            yield "local: expert_parallel within expert_parallel; use one of them"
        elif not self.forms:
            yield (
                f"local: dispatcher {type(self.local).__name__} takes {', '.join(sorted(self.local.forms))}, but ranks "
                "exchange token-expert pairs: use grouped, auto or capacity"
            )

    def check_experts(self, num_experts: int) -> Iterable[str]:
        """Ranks must hold equal numbers of experts."""
        if self.size is not None and num_experts % self.size:
            yield (
                f"size={self.size} of the dispatcher does not divide the {num_experts} experts evenly: "
                "choose a divisor for size, or a multiple of it for count"
            )
        yield from self.local.check_experts(num_experts)

    def check_router(self, router: RouterSpec) -> Iterable[str]:
        """Those of the local dispatcher."""
        return self.local.check_router(router)
