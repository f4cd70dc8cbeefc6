"""The expert parallel dispatcher."""

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
from moekit.routing import Routing
from moekit_dispatchers.auto import Auto
from moekit_dispatchers.expert_parallel import ExpertParallel
from moekit_dispatchers.expert_parallel.exchange import Plan, Underway, exchange, plan, received

_WHY = "uneven exchanges: sizes are read on the host"


@final
class ExpertParallelDispatcher(Dispatcher):
    """``y_t = sum of gate · expert(x_t)`` over the pairs of token t, each computed by the rank that holds the expert.

    Rank r of an expert group of G ranks holds experts ``r · E/G`` to ``(r + 1) · E/G - 1`` (``here``); the groups are
    rows of ``moekit.parallel.mesh.expert_mesh``. A token goes once to each rank that it needs, with its gates there;
    that rank weighs and sums, and one row comes back, to be added to those of other ranks. Where a router limits a
    token to M of G groups (DeepSeek-V2, section 2.2.2; V3's nodes, section 2.1.2), it is sent to at most M ranks.

    Source: GShard (arXiv 2006.16668), section 3; DeepSeek-V3 (arXiv 2412.19437), section 3.2.2.

    What is dropped is decided here, where the tokens are, by ``local`` over all E experts: a capacity means the same
    on any number of ranks. A local dispatcher that drops nothing also computes on the rows that arrive; for one that
    drops, ``auto`` does.

    All ranks of a group call it together, in forward, in recomputation and in backward, a rank without tokens too.
    One thing is read on the host, how many rows and pairs come and go: uneven exchanges need it there. So the exchange
    is no part of a compiled graph. Sums are taken in one fixed order, in the wider of the gates' and the outputs'
    dtype; the outputs of one rank for a token travel in the outputs' own.

    Under autocast rows in fp32 travel in its dtype (``row_dtype``), since an expert's first product rounds them to that
    at once; gates stay as they are, and a token's gradients are summed in its own dtype. A bank that begins with
    something else sees rows that are rounded already, which in one process it does not.

    Tokens travel while the layer computes its shared experts (``start``), where the device can do both at once.

    In one process, or with ``size`` 1, it is ``local``, and ``here`` is None.

    Raises:
        ValueError: ranks cannot be cut into groups of ``size``, or experts into as many parts; a soft routing; a bank
            that holds other experts than ``here``.
    """

    def __init__(self, spec: ExpertParallel, dims: LayerDims) -> None:
        super().__init__()
        for conflict in spec.check_experts(dims.num_experts):
            raise ValueError(conflict)
        self.local = cast(Dispatcher, build(spec.local, dims))
        self.size = (dist.get_world_size() if spec.size is None else spec.size) if is_distributed() else 1
        self.carrier: Dispatcher | None = None
        if self.size == 1:
            return
        _, rank = mesh_coordinate(self.size)
        held, rest = divmod(dims.num_experts, self.size)
        if rest:
            raise ValueError(
                f"{self.size} ranks cannot share {dims.num_experts} experts evenly: give expert_parallel a size that "
                "divides both, or start another number of processes"
            )
        self.local_experts = range(rank * held, (rank + 1) * held)
        own = LayerDims(dim=dims.dim, num_experts=held, out_dim=dims.out_dim)
        self.carrier = cast(Dispatcher, build(spec.local if spec.dropless else Auto(), own))

    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        """Drops, sends, computes what arrives, sends back, sums."""
        return self.start(x_TD, routing, experts, num_sequences=num_sequences)()

    def start(
        self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1
    ) -> Callable[[], Dispatched]:
        """Drops and sends. What is left to be called does the rest."""
        if self.local_experts is None:
            return self.local.start(x_TD, routing, experts, num_sequences=num_sequences)
        if experts.num_experts != len(self.local_experts):
            raise ValueError(
                f"this rank computes experts {self.local_experts.start} to {self.local_experts.stop - 1}, but the "
                f"bank holds {experts.num_experts}; MoELayer.from_spec builds {len(self.local_experts)} where "
                "expert_parallel is the "
                "layer's own dispatcher, and not held by another"
            )
        left, dropped = self.local.limit(routing, num_sequences)
        way, underway = self.leave(x_TD, left)
        return lambda: Dispatched(y_TO=self.come_back(way, underway, experts), dropped=dropped)

    @torch.compiler.disable(reason=_WHY)  # type: ignore[untyped-decorator, no-untyped-call]
    def leave(self, x_TD: Tensor, routing: Routing) -> tuple[Plan, Underway]:
        """Tokens set out, each with its gates and the numbers of its experts."""
        group = expert_mesh(self.size, x_TD.device.type).get_group(EXPERT)
        way = plan(routing, group)
        return way, exchange(group, way.sends, way.gets, way.rows(x_TD), way.gate_NC, way.number_NC)

    @torch.compiler.disable(reason=_WHY)  # type: ignore[untyped-decorator, no-untyped-call]
    def come_back(self, way: Plan, underway: Underway, experts: ExpertBank) -> Tensor:
        """``y_TO``: computes the rows that have come, sends them back, and sums those that come back."""
        assert self.carrier is not None
        underway.wait()
        x_ND, gate_NK, number_NK = underway.tensors
        chosen = received(number_NK, gate_NK, experts.num_experts, way.num_pairs)
        out = cast(Dispatched, self.carrier(x_ND, chosen, experts))
        back = exchange(expert_mesh(self.size, x_ND.device.type).get_group(EXPERT), way.gets, way.sends, out.y_TO)
        back.wait()
        (y_NO,) = back.tensors
        dtype = torch.promote_types(gate_NK.dtype, y_NO.dtype)
        return way.sum(y_NO.to(dtype)).to(y_NO.dtype)

    def limit(self, routing: Routing, num_sequences: int) -> tuple[Routing, Tensor]:
        """What the local dispatcher says."""
        return self.local.limit(routing, num_sequences)

    def extra_repr(self) -> str:
        """Options, for ``print(model)``."""
        experts = self.local_experts
        return f"size={self.size}, local_experts={'all' if experts is None else f'{experts.start}..{experts.stop - 1}'}"
