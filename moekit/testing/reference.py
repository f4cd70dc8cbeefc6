"""What the kit holds components against: plain loops, and the simplest partners for a part that is tested alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.contracts import ExpertBank
from moekit.contracts.layer import Groups
from moekit.routing import ExpertChoice, Routing, Soft, TokenChoice


class LoopGroups(Groups):
    """Groups of any sizes, one expert after the other; rows past the last group come out 0.

    Args:
        sizes: the number of rows of each expert.
        num_rows: N, at least the sum of the sizes.
    """

    def __init__(self, sizes: list[int], num_rows: int | None = None) -> None:
        self.sizes = sizes
        self.num_experts = len(sizes)
        self.num_rows = sum(sizes) if num_rows is None else num_rows

    def linear(self, x_ND: Tensor, w_EHD: Tensor, b_EH: Tensor | None = None) -> Tensor:
        """``y_NH``, one product an expert."""
        parts = [F.linear(x, w_EHD[e], None if b_EH is None else b_EH[e]) for e, x in enumerate(self.split(x_ND))]
        return self._with_rest(parts)

    def per_row(self, p_EX: Tensor) -> Tensor:
        """``p_NX``, each expert's slice for its rows."""
        return self._with_rest([p_EX[e].expand(n, *p_EX.shape[1:]) for e, n in enumerate(self.sizes)])

    def split(self, x_ND: Tensor) -> list[Tensor]:
        """The rows of each expert."""
        return list(torch.split(x_ND[: sum(self.sizes)], self.sizes))

    def _with_rest(self, parts: list[Tensor]) -> Tensor:
        y = torch.cat(parts)
        return torch.cat([y, y.new_zeros(self.num_rows - y.shape[0], *y.shape[1:])])


class TanhExperts(ExpertBank):
    """The kit's own experts: ``tanh(W_e x + b_e)``, different for every expert and nowhere flat."""

    def __init__(self, num_experts: int, dim: int, out_dim: int, *, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.out_dim = out_dim
        draw = torch.Generator().manual_seed(7)
        self.w_EOD = nn.Parameter(torch.randn(num_experts, out_dim, dim, generator=draw, dtype=torch.float64).to(dtype))
        self.b_EO = nn.Parameter(torch.randn(num_experts, out_dim, generator=draw, dtype=torch.float64).to(dtype))

    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        """``y_NO``."""
        return torch.tanh(groups.linear(x_ND, self.w_EOD, self.b_EO))


class NameExperts(ExpertBank):
    """Experts that answer with their own name: expert ``e`` gives the ``e``-th unit vector, whatever comes in."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.out_dim = num_experts
        self.name_EO = nn.Parameter(torch.eye(num_experts, dtype=torch.float64))

    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        """``y_NO``, one-hot."""
        return groups.per_row(self.name_EO)


def one_expert(experts: ExpertBank, e: int, x_D: Tensor) -> Tensor:
    """``y_O``: what expert ``e`` alone says to one token."""
    sizes = [int(i == e) for i in range(experts.num_experts)]
    y_NO: Tensor = experts(x_D[None], LoopGroups(sizes))
    return y_NO[0]


def naive_sum(x_TD: Tensor, routing: Routing, experts: ExpertBank, *, kept_TE: Tensor | None = None) -> Tensor:
    """``y_TO``: the sum over pairs that every dispatcher computes, token by token and expert by expert.

    With ``kept_TE`` only over the pairs where it is True: what a dispatcher that drops has left of a sparse routing.
    """
    T, E = routing.scores_TE.shape
    kept = torch.ones(T, E, dtype=torch.bool) if kept_TE is None else kept_TE
    valid = [True] * T if routing.valid_T is None else [bool(v) for v in routing.valid_T]
    y = [x_TD.new_zeros(experts.out_dim) for _ in range(T)]
    if isinstance(routing, TokenChoice):
        for t in range(T):
            for k in range(routing.expert_TK.shape[1]):
                e = int(routing.expert_TK[t, k])
                if valid[t] and kept[t, e] and (routing.sent_TK is None or routing.sent_TK[t, k]):
                    y[t] = y[t] + routing.gate_TK[t, k] * one_expert(experts, e, x_TD[t])
    elif isinstance(routing, ExpertChoice):
        for e in range(E):
            for c in range(routing.token_EC.shape[1]):
                t = int(routing.token_EC[e, c])
                if valid[t] and kept[t, e]:
                    y[t] = y[t] + routing.gate_EC[e, c] * one_expert(experts, e, x_TD[t])
    elif isinstance(routing, Soft):
        for e in range(E):
            for p in range(routing.combine_TEP.shape[2]):
                slot_D = x_TD.new_zeros(x_TD.shape[1])
                for t in range(T):
                    if valid[t] and routing.dispatch_TEP is not None:
                        slot_D = slot_D + routing.dispatch_TEP[t, e, p] * x_TD[t]
                for t in range(T):
                    if valid[t]:
                        seen_D = x_TD[t] if routing.dispatch_TEP is None else slot_D
                        y[t] = y[t] + routing.combine_TEP[t, e, p] * one_expert(experts, e, seen_D)
    return torch.stack(y) if y else x_TD.new_zeros(0, experts.out_dim)


def weights_TX(routing: Routing) -> Tensor:
    """``[T, E]`` (``[T, E·P]`` under soft routing): each valid token's weight on each expert, 0 where it goes not."""
    T, E = routing.scores_TE.shape
    if isinstance(routing, Soft):
        weights = routing.combine_TEP.flatten(1)
        return weights if routing.valid_T is None else weights.where(routing.valid_T[:, None], 0.0)
    assert isinstance(routing, TokenChoice | ExpertChoice)
    pairs = routing.pairs()
    nowhere = pairs.gate_N.new_zeros(T, E + 1)
    return nowhere.index_put((pairs.token_N, pairs.expert_N), pairs.gate_N, accumulate=True)[:, :E]


def chosen_TE(routing: Routing) -> Tensor:
    """bool ``[T, E]``: which experts each valid token goes to."""
    T, E = routing.scores_TE.shape
    chosen = torch.zeros(T, E + 1, dtype=torch.bool, device=routing.scores_TE.device)
    if isinstance(routing, TokenChoice | ExpertChoice):
        pairs = routing.pairs()
        chosen[pairs.token_N, pairs.expert_N] = True
    else:
        chosen[:, :] = True if routing.valid_T is None else routing.valid_T[:, None]
    return chosen[:, :E]


def gates_of(routing: Routing) -> Tensor:
    """The weights on the experts' outputs, in the form's own shape."""
    if isinstance(routing, TokenChoice):
        return routing.gate_TK
    if isinstance(routing, ExpertChoice):
        return routing.gate_EC
    assert isinstance(routing, Soft)
    return routing.combine_TEP
