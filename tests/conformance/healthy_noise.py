"""The smallest healthy router with noise and a loss of its own; broken ones are this with one fault each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from healthy_layers import Pick, PickRouter
from torch import Tensor, nn

from moekit import LayerDims, LossTerm, Routing, TokenChoice


@dataclass(frozen=True, kw_only=True)
class NoisyPick(Pick):
    gives_smooth_load: ClassVar[bool] = True


class NoisyPickRouter(PickRouter):
    """Noise of standard deviation 1, and a level that its own loss draws to the mean logit."""

    def __init__(self, spec: Pick, dims: LayerDims) -> None:
        super().__init__(spec, dims)
        self.level = nn.Parameter(torch.zeros(1))

    def forward(
        self, x_TD: Tensor, *, valid_T: Tensor | None = None, selection_bias_E: Tensor | None = None
    ) -> Routing:
        logits_TE = self.logits(self.clean(x_TD, valid_T))
        noisy_TE = self.noisy(logits_TE) if self.training else logits_TE
        expert_TK = self.choose(noisy_TE if selection_bias_E is None else noisy_TE + selection_bias_E)
        valid_T1 = torch.ones_like(logits_TE[:, :1], dtype=torch.bool) if valid_T is None else valid_T[:, None]
        return TokenChoice(
            logits_TE=logits_TE,
            scores_TE=self.score(logits_TE),
            valid_T=valid_T,
            smooth_load_E=self.smooth(self.chance(logits_TE, noisy_TE), valid_T1),
            own_loss=self.own_loss(logits_TE, valid_T1) if self.training else None,
            expert_TK=expert_TK,
            gate_TK=logits_TE.softmax(1).gather(1, expert_TK),
        )

    def noisy(self, logits_TE: Tensor) -> Tensor:
        return logits_TE + torch.randn_like(logits_TE)

    def chance(self, logits_TE: Tensor, noisy_TE: Tensor) -> Tensor:
        k = self.spec.top_k
        top_TK, index_TK = noisy_TE.topk(k + 1, dim=1)
        inside_TE = torch.zeros_like(noisy_TE, dtype=torch.bool).scatter(1, index_TK[:, :k], True)
        return 0.5 * (1 + torch.erf((logits_TE - torch.where(inside_TE, top_TK[:, k:], top_TK[:, k - 1 : k])) / 2**0.5))

    def smooth(self, chance_TE: Tensor, valid_T1: Tensor) -> Tensor | None:
        return (chance_TE * valid_T1).sum(0) if self.training else None

    def own_loss(self, logits_TE: Tensor, valid_T1: Tensor) -> LossTerm:
        mean = (logits_TE.detach() * valid_T1).sum() / valid_T1.sum().clamp(min=1) / logits_TE.shape[1]
        return LossTerm(value=(self.level[0].to(mean.dtype) - mean - 1).square(), weight=1.0)
