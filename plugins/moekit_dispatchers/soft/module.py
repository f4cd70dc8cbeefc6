"""The soft dispatcher. Reference implementation: ``naive.py``."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from moekit.contracts import Dispatched, Dispatcher, ExpertBank, LayerDims
from moekit.contracts.layer import UniformGroups
from moekit.routing import Routing
from moekit.routing import Soft as SoftRouting
from moekit_dispatchers.soft import Soft


@final
class SoftDispatcher(Dispatcher):
    """``y_t = sum over e, p of combine[t, e, p] · o[e, p]``, where o is what expert e makes of its slot p.

    Without slots (``dispatch_TEP`` is None) every expert sees every token itself, ``o[t, e] = expert_e(x_t)``, and
    those outputs are returned as ``expert_TEO`` (Jacobs et al. 1991, Neural Computation 3(1), equation 1.1). With
    slots, slot p of expert e holds the mixture ``sum over t of dispatch[t, e, p] · x_t`` (Puigcerver et al. 2023, arXiv
    2308.00951, equations 1 to 3).

    Both sums run in the routing's dtype, whatever autocast says; y has the experts' output dtype. Padding tokens enter
    no slot and come out 0; their entries of ``expert_TEO`` are each expert's output for a token of zeros.
    """

    def __init__(self, spec: Soft, dims: LayerDims) -> None:
        super().__init__()

    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        """Mixes tokens, computes, combines.

        Raises:
            ValueError: a routing that is not soft.
        """
        if not isinstance(routing, SoftRouting):
            raise ValueError(
                f"the dispatcher 'soft' takes soft routings, but the router gave '{routing.form}'; "
                "the dispatchers 'grouped' and 'loop' take that"
            )
        valid_T = routing.valid_T
        combine_TEP = routing.combine_TEP
        if valid_T is not None:  # select, never multiply by 0: padding may hold NaN
            x_TD = x_TD.where(valid_T[:, None], 0)
            combine_TEP = combine_TEP.where(valid_T[:, None, None], 0)
        if routing.dispatch_TEP is None:
            return self._blend(x_TD, combine_TEP, experts)
        dispatch_TEP = routing.dispatch_TEP
        if valid_T is not None:
            dispatch_TEP = dispatch_TEP.where(valid_T[:, None, None], 0)
        return self._mix(x_TD, dispatch_TEP, combine_TEP, experts)

    def _blend(self, x_TD: Tensor, combine_TEP: Tensor, experts: ExpertBank) -> Dispatched:
        """Every expert on every token."""
        E, T = experts.num_experts, x_TD.shape[0]
        out_NO = experts(x_TD.repeat(E, 1), UniformGroups(E, E * T))
        expert_TEO = out_NO.reshape(E, T, experts.out_dim).transpose(0, 1)
        y_TO = (combine_TEP * expert_TEO).sum(1)  # P = 1 broadcasts over O
        return Dispatched(y_TO=y_TO.to(out_NO.dtype), dropped=_none(x_TD), expert_TEO=expert_TEO)

    def _mix(self, x_TD: Tensor, dispatch_TEP: Tensor, combine_TEP: Tensor, experts: ExpertBank) -> Dispatched:
        """Every expert on its slots."""
        E, P = dispatch_TEP.shape[1:]
        dispatch_TN, combine_TN = dispatch_TEP.flatten(1), combine_TEP.flatten(1)
        with torch.autocast(x_TD.device.type, enabled=False):
            slot_ND = dispatch_TN.mT @ x_TD.to(dispatch_TN.dtype)
        out_NO = experts(slot_ND.to(x_TD.dtype), UniformGroups(E, E * P))
        with torch.autocast(x_TD.device.type, enabled=False):
            y_TO = combine_TN @ out_NO.to(combine_TN.dtype)
        return Dispatched(y_TO=y_TO.to(out_NO.dtype), dropped=_none(x_TD))


def _none(x_TD: Tensor) -> Tensor:
    """0-d int64 zero: nothing is ever dropped."""
    return torch.zeros((), dtype=torch.int64, device=x_TD.device)
