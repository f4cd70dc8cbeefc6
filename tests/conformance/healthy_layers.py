"""The smallest healthy router, expert bank, dispatcher and attention; broken ones are these with one fault each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit import (
    Component,
    Dispatched,
    Dispatcher,
    ExpertBank,
    Groups,
    LayerDims,
    Router,
    Routing,
    Soft,
    Spec,
    TokenChoice,
    option,
)
from moekit.contracts.layer import LoopGroups
from moekit.spec.kinds import ALL_FORMS, AttentionSpec, DispatcherSpec, ExpertSpec, Form, RouterSpec


def component(spec: type[Spec], target: Callable[..., object], summary: str = "for the kit's own tests") -> Component:
    return Component(name=spec.__name__.lower(), spec=spec, target=target, summary=summary)


@dataclass(frozen=True, kw_only=True)
class Pick(RouterSpec):
    top_k: int = option(2, "experts a token runs through", ge=1)

    def active(self, num_experts: int) -> float:
        return self.top_k


class PickRouter(Router):
    def __init__(self, spec: Pick, dims: LayerDims) -> None:
        super().__init__()
        self.spec = spec
        self.w_ED = nn.Parameter(torch.randn(dims.num_experts, dims.dim) * dims.dim**-0.5)

    def forward(
        self, x_TD: Tensor, *, valid_T: Tensor | None = None, selection_bias_E: Tensor | None = None
    ) -> Routing:
        logits_TE = self.logits(self.clean(x_TD, valid_T))
        scores_TE = self.score(logits_TE)
        biased_TE = scores_TE if selection_bias_E is None else scores_TE + selection_bias_E
        expert_TK = self.choose(biased_TE)
        return TokenChoice(
            logits_TE=logits_TE,
            scores_TE=scores_TE,
            valid_T=valid_T,
            expert_TK=expert_TK,
            gate_TK=self.gate(scores_TE, biased_TE, expert_TK),
        )

    def clean(self, x_TD: Tensor, valid_T: Tensor | None) -> Tensor:
        return x_TD if valid_T is None else x_TD.masked_fill(~valid_T[:, None], 0.0)

    def logits(self, x_TD: Tensor) -> Tensor:
        wide = torch.promote_types(x_TD.dtype, torch.float32)
        with torch.autocast(x_TD.device.type if x_TD.device.type != "meta" else "cpu", enabled=False):
            return F.linear(x_TD.to(wide), self.w_ED.to(wide))

    def score(self, logits_TE: Tensor) -> Tensor:
        return logits_TE.softmax(1)

    def choose(self, biased_TE: Tensor) -> Tensor:
        return biased_TE.detach().topk(self.spec.top_k, dim=1).indices

    def gate(self, scores_TE: Tensor, biased_TE: Tensor, expert_TK: Tensor) -> Tensor:
        return scores_TE.gather(1, expert_TK)


@dataclass(frozen=True, kw_only=True)
class PickUnbiased(Pick):
    takes_bias: ClassVar[bool] = False


class PickUnbiasedRouter(PickRouter):
    def forward(
        self, x_TD: Tensor, *, valid_T: Tensor | None = None, selection_bias_E: Tensor | None = None
    ) -> Routing:
        return super().forward(x_TD, valid_T=valid_T)


@dataclass(frozen=True, kw_only=True)
class Tanh(ExpertSpec):
    pass


class TanhBank(ExpertBank):
    def __init__(self, spec: Tanh, dims: LayerDims) -> None:
        super().__init__()
        self.num_experts, self.out_dim = spec.count, dims.out_dim
        self.w_EOD = nn.Parameter(torch.randn(spec.count, self.out_dim, dims.dim))

    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        return torch.tanh(groups.linear(x_ND, self.w_EOD))


@dataclass(frozen=True, kw_only=True)
class Walk(DispatcherSpec):
    forms: ClassVar[frozenset[Form]] = ALL_FORMS


class WalkDispatcher(Dispatcher):
    def __init__(self, spec: Walk, dims: LayerDims) -> None:
        super().__init__()

    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        return self.soft(x_TD, routing, experts) if isinstance(routing, Soft) else self.pairs(x_TD, routing, experts)

    def soft(self, x_TD: Tensor, routing: Soft, experts: ExpertBank) -> Dispatched:
        T, E, P = routing.combine_TEP.shape
        combine_TEP, dispatch_TEP = routing.combine_TEP, routing.dispatch_TEP
        if routing.valid_T is not None:
            pad_T = ~routing.valid_T
            x_TD = x_TD.masked_fill(pad_T[:, None], 0.0)
            combine_TEP = combine_TEP.masked_fill(pad_T[:, None, None], 0.0)
            if dispatch_TEP is not None:
                dispatch_TEP = dispatch_TEP.masked_fill(pad_T[:, None, None], 0.0)
        combine_TEP = combine_TEP.to(x_TD.dtype)
        if dispatch_TEP is None:
            y_ETO = experts(x_TD.repeat(E, 1), LoopGroups([T] * E)).view(E, T, experts.out_dim)
            y_TO = torch.einsum("te,eto->to", combine_TEP[:, :, 0], y_ETO)
            return Dispatched(y_TO=y_TO, dropped=_none(x_TD), expert_TEO=self.own(y_ETO.transpose(0, 1), combine_TEP))
        slots_ND = torch.einsum("tep,td->epd", dispatch_TEP.to(x_TD.dtype), x_TD).flatten(0, 1)
        y_EPO = experts(slots_ND, LoopGroups([P] * E)).view(E, P, experts.out_dim)
        return Dispatched(y_TO=torch.einsum("tep,epo->to", combine_TEP, y_EPO), dropped=_none(x_TD))

    def own(self, y_TEO: Tensor, combine_TEP: Tensor) -> Tensor:
        return y_TEO

    def pairs(self, x_TD: Tensor, routing: Routing, experts: ExpertBank) -> Dispatched:
        pairs = routing.pairs()  # type: ignore[attr-defined]
        order_N, sizes = self.keep(pairs.expert_N, experts.num_experts)
        token_N, gate_N = pairs.token_N[order_N], pairs.gate_N[order_N]
        y_NO = experts(x_TD[token_N], LoopGroups(sizes)) * self.weigh(gate_N)[:, None].to(x_TD.dtype)
        y_TO = x_TD.new_zeros(x_TD.shape[0], experts.out_dim).index_add(0, token_N, y_NO)
        return Dispatched(y_TO=y_TO, dropped=_none(x_TD) + self.dropped(pairs.expert_N, experts.num_experts, sizes))

    def keep(self, expert_N: Tensor, E: int) -> tuple[Tensor, list[int]]:
        sizes = torch.bincount(expert_N, minlength=E + 1)[:E].tolist()
        return expert_N.argsort(stable=True)[: sum(sizes)], sizes

    def weigh(self, gate_N: Tensor) -> Tensor:
        return gate_N

    def dropped(self, expert_N: Tensor, E: int, sizes: list[int]) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class Limit(DispatcherSpec):
    dropless: ClassVar[bool] = False


class LimitDispatcher(WalkDispatcher):
    """Keeps at most two pairs an expert, and says how many it dropped."""

    def keep(self, expert_N: Tensor, E: int) -> tuple[Tensor, list[int]]:
        kept = [(expert_N == e).nonzero().flatten()[:2] for e in range(E)]
        return torch.cat(kept), [len(rows) for rows in kept]

    def dropped(self, expert_N: Tensor, E: int, sizes: list[int]) -> int:
        return int((expert_N < E).sum()) - sum(sizes)


def _none(x_TD: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.int64, device=x_TD.device)


@dataclass(frozen=True, kw_only=True)
class Look(AttentionSpec):
    pass


class LookAttention(nn.Module):
    def __init__(self, spec: Look, dim: int, causal: bool = True) -> None:
        super().__init__()
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)

    def forward(self, x_BSD: Tensor, *, valid_BS: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x_BSD).chunk(3, dim=-1)
        score_BSS = q / 8 @ k.mT
        return self.attend(score_BSS.masked_fill(self.hidden(score_BSS, valid_BS), -torch.inf), v)

    def hidden(self, score_BSS: Tensor, valid_BS: Tensor | None) -> Tensor:
        if self.causal:
            return torch.ones_like(score_BSS, dtype=torch.bool).triu(1)
        return torch.zeros(()).bool() if valid_BS is None else ~valid_BS[:, None]

    def attend(self, score_BSS: Tensor, v: Tensor) -> Tensor:
        return score_BSS.softmax(-1) @ v
