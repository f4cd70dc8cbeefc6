"""The expert parallel dispatcher. Reference implementation: ``naive.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast, final

import torch
import torch.distributed as dist
from torch import Tensor

from moekit.contracts import Dispatched, Dispatcher, ExpertBank, LayerDims
from moekit.distributed import is_distributed
from moekit.parallel.mesh import EXPERT, expert_mesh, mesh_coordinate
from moekit.registry import build
from moekit.routing import Routing, lost_tokens
from moekit_dispatchers.auto import Auto
from moekit_dispatchers.expert_parallel import ExpertParallel
from moekit_dispatchers.expert_parallel.exchange import ExchangePlan, Pending, exchange, plan_exchange, received

_REASON = "an uneven all-to-all reads its sizes on the host"


@final
class ExpertParallelDispatcher(Dispatcher):
    """``y_t = sum of gate · expert(x_t)`` over the pairs of token t, each computed by the rank that holds the expert.

    Rank r of an expert group of G ranks holds experts ``r · E/G`` to ``(r + 1) · E/G - 1`` (``local_experts``); the
    groups are the rows of ``moekit.parallel.mesh.expert_mesh``. A token is sent once to each rank that holds experts of
    its choice, with its gates there. That rank sums its experts' gated outputs and returns one row per token; the rows
    of all ranks are added. If a router limits a token to M of G groups (DeepSeek-V2, section 2.2.2; V3's nodes, section
    2.1.2), the token is sent to at most M ranks.

    Source: Lepikhin et al. 2020, GShard (arXiv 2006.16668), section 3, for the all-to-all; DeepSeek-AI 2024,
    DeepSeek-V2 (arXiv 2405.04434), section 2.2.2, and DeepSeek-V3 (arXiv 2412.19437), sections 2.1.2 and 3.2.2, for
    sending a token once to each rank, and to a limited number of them.

    Drops are decided before the exchange, on the tokens' own rank, by ``local`` over all E experts: a capacity means
    the same on any number of ranks. Received rows are computed by ``local`` too if it is dropless, else by ``auto``.

    Collective: all ranks of a group call it together, in forward, in recomputation and in backward, even without
    tokens. The numbers of rows and pairs to send and receive are read on the host, because uneven exchanges need them
    there, so the exchange is not part of a compiled graph. Sums have a fixed order, and are in fp32 at least; rows are
    returned in the outputs' dtype.

    Under autocast fp32 rows are sent in its dtype (``row_dtype``), because an expert's first product casts them to it
    anyway; gates keep their dtype, and a token's gradients are summed in its own. A bank that starts with another
    operation than a product therefore sees rounded rows, which it would not in one process.

    Tokens are sent while the layer computes its shared experts (``start``), if the device can overlap the two.

    In one process, or with ``size`` 1, it behaves as ``local``, and ``local_experts`` is None.

    Raises:
        ValueError: ``size`` does not divide the ranks or the experts; a soft routing; a bank with another number of
            experts than ``local_experts``.
    """

    def __init__(self, spec: ExpertParallel, dims: LayerDims) -> None:
        super().__init__()
        for conflict in spec.check_experts(dims.num_experts):
            raise ValueError(conflict)
        self.spec = spec
        self.local = cast(Dispatcher, build(spec.local, dims))
        self.size = (dist.get_world_size() if spec.size is None else spec.size) if is_distributed() else 1
        self.compute: Dispatcher | None = None
        if self.size == 1:
            return
        _, rank = mesh_coordinate(self.size)
        held, rest = divmod(dims.num_experts, self.size)
        if rest:
            raise ValueError(
                f"{self.size} ranks cannot share {dims.num_experts} experts evenly: give expert_parallel a size that "
                "divides both, or start a different number of processes"
            )
        self.local_experts = range(rank * held, (rank + 1) * held)
        own = LayerDims(dim=dims.dim, num_experts=held, out_dim=dims.out_dim)
        self.compute = cast(Dispatcher, build(spec.local if spec.dropless else Auto(), own))

    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        """Drops, dispatches, computes received rows, returns them, combines."""
        return self.start(x_TD, routing, experts, num_sequences=num_sequences)()

    def start(
        self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1
    ) -> Callable[[], Dispatched]:
        """Drops and dispatches; the returned function does the rest.

        Raises:
            ValueError: a soft routing; a bank with another number of experts than ``local_experts``.
        """
        if self.local_experts is None:
            return self.local.start(x_TD, routing, experts, num_sequences=num_sequences)
        if experts.num_experts != len(self.local_experts):
            raise ValueError(
                f"this rank computes experts {self.local_experts.start} to {self.local_experts.stop - 1}, but the "
                f"bank holds {experts.num_experts}; MoELayer.from_spec builds {len(self.local_experts)} if "
                "expert_parallel is the layer's own dispatcher, not inside another one"
            )
        kept, dropped = self.local.limit(routing, num_sequences)
        plan, pending = self.dispatch(x_TD, kept)
        lost = lost_tokens(routing, kept)
        return lambda: Dispatched(y_TO=self.combine(plan, pending, experts), dropped=dropped, dropped_tokens=lost)

    @torch.compiler.disable(reason=_REASON)  # type: ignore[untyped-decorator, no-untyped-call]
    def dispatch(self, x_TD: Tensor, routing: Routing) -> tuple[ExchangePlan, Pending]:
        """Starts to send tokens to their ranks, each with its gates and expert numbers."""
        group = expert_mesh(self.size, x_TD.device.type).get_group(EXPERT)
        plan = plan_exchange(routing, group)
        tensors = (plan.rows(x_TD), plan.gate_NC, plan.number_NC)
        return plan, exchange(group, plan.send_counts, plan.receive_counts, *tensors)

    @torch.compiler.disable(reason=_REASON)  # type: ignore[untyped-decorator, no-untyped-call]
    def combine(self, plan: ExchangePlan, pending: Pending, experts: ExpertBank) -> Tensor:
        """``y_TO``: computes the received rows, returns the outputs to their ranks, and sums them by token."""
        assert self.compute is not None
        pending.wait()
        x_ND, gate_NK, number_NK = pending.tensors
        routing = received(number_NK, gate_NK, experts.num_experts, plan.num_pairs)
        out = cast(Dispatched, self.compute(x_ND, routing, experts))
        group = expert_mesh(self.size, x_ND.device.type).get_group(EXPERT)
        pending = exchange(group, plan.receive_counts, plan.send_counts, out.y_TO)
        pending.wait()
        (y_NO,) = pending.tensors
        return plan.sum(y_NO)

    def limit(self, routing: Routing, num_sequences: int) -> tuple[Routing, Tensor]:
        """The limit of the local dispatcher."""
        return self.local.limit(routing, num_sequences)

    def extra_repr(self) -> str:
        """Options, for ``print(model)``."""
        experts = self.local_experts
        return f"size={self.size}, local_experts={'all' if experts is None else f'{experts.start}..{experts.stop - 1}'}"
