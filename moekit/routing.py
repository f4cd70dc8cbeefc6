"""Routing: the value everything turns on. What a router decided, in one of three forms.

Shapes: T tokens, E experts, K experts per token, C tokens per expert, P slots per expert, N token-expert pairs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moekit.spec.kinds import Form

SUM_GUARD = 1e-20  # added to a token's sum of affinities, so that sigmoids that are all 0 give shares 0, not NaN


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """One loss of one layer. What is added to the objective is ``weight · value``.

    Attributes:
        value: 0-d tensor, a mean over tokens, as the paper states it before its coefficient.
        weight: the coefficient.
    """

    value: Tensor
    weight: float


@dataclass(frozen=True)
class Pairs:
    """A routing as a flat list of (token, expert, gate): what a sparse dispatcher works on.

    Attributes:
        token_N: int64, the token of each pair.
        expert_N: int64, its expert; ``E`` for a pair that goes nowhere (padding, dropped).
        gate_N: the weight on the expert's output; carries the gradient to the router.
    """

    token_N: Tensor
    expert_N: Tensor
    gate_N: Tensor


@dataclass(frozen=True, kw_only=True)
class Routing(ABC):
    """What every form of routing carries. Arithmetic is at least fp32, whatever autocast says.

    Attributes:
        logits_TE: router outputs.
        scores_TE: affinities, after the score function (softmax, sigmoid, ...) and without any selection bias.
        valid_T: bool, False for padding; None when every token is valid. Padding reaches no expert and no statistic.
        smooth_load_E: a differentiable estimate of the load, from a router that chooses at random (noise): the
            expected number of valid tokens that each expert gets; None from other routers, and without noise.
        own_loss: a loss that only the router can state, since it holds what the loss trains; None from most.
    """

    form: ClassVar[Form]
    logits_TE: Tensor
    scores_TE: Tensor
    valid_T: Tensor | None = None
    smooth_load_E: Tensor | None = None
    own_loss: LossTerm | None = None

    @property
    def num_experts(self) -> int:
        """E."""
        return self.scores_TE.shape[1]

    @abstractmethod
    def load_E(self) -> Tensor:
        """int64: valid tokens sent to each expert, before anything is dropped."""

    def num_valid(self) -> Tensor:
        """0-d int64: the number of tokens that are not padding."""
        if self.valid_T is None:
            return torch.full((), self.scores_TE.shape[0], dtype=torch.int64, device=self.scores_TE.device)
        return self.valid_T.sum()

    def mean_score_BE(self, num_units: int, *, normalize: bool) -> Tensor:
        """``P`` of balance losses, differentiable: per unit, each expert's summed affinity over **all** valid tokens.

        It is divided by the number of valid tokens of all units, so that the sum over units is the mean over tokens.

        Args:
            num_units: B, equal runs of consecutive tokens that are balanced apart: sequences, or 1 for all tokens.
            normalize: divide a token's affinities by their sum first (sigmoids need it; a softmax sums to 1 already).
        """
        scores_TE = self.scores_TE
        if self.valid_T is not None:
            scores_TE = scores_TE.masked_fill(~self.valid_T[:, None], 0)
        if normalize:
            scores_TE = scores_TE / (scores_TE.sum(-1, keepdim=True) + SUM_GUARD)
        T, E = scores_TE.shape
        sum_BE = scores_TE.reshape(num_units, T // max(num_units, 1), E).sum(1)
        return sum_BE / (max(T, 1) if self.valid_T is None else self.num_valid().clamp(min=1))


@dataclass(frozen=True, kw_only=True)
class TokenChoice(Routing):
    """Each token chose K experts.

    Attributes:
        expert_TK: int64, distinct along K.
        gate_TK: weights on the experts' outputs.
        sent_TK: bool, False for a choice that the router itself does not send (a second expert left out at random; an
            expert below a threshold). It reaches no expert and is no load. None when every choice is sent.
    """

    form: ClassVar[Form] = "token_choice"
    expert_TK: Tensor
    gate_TK: Tensor
    sent_TK: Tensor | None = None

    def counts_TK(self) -> Tensor | None:
        """bool: which choices count, of valid tokens and sent; None when all do."""
        if self.valid_T is None:
            return self.sent_TK
        valid_TK = self.valid_T[:, None].expand(self.expert_TK.shape)
        return valid_TK if self.sent_TK is None else valid_TK & self.sent_TK

    def load_E(self) -> Tensor:
        """int64: valid tokens that are sent to each expert."""
        return self.load_BE(1).squeeze(0)

    def load_BE(self, num_units: int) -> Tensor:
        """int64: ``load_E`` of each of B units, equal runs of consecutive tokens (sequences; 1 for all tokens)."""
        counts_TK, slot_TK, E = self.counts_TK(), self.expert_TK, self.num_experts
        one_TK = torch.ones_like(slot_TK) if counts_TK is None else counts_TK.long()
        if num_units > 1:
            unit_B = torch.arange(num_units, device=slot_TK.device)
            slot_TK = slot_TK + E * unit_B.repeat_interleave(slot_TK.shape[0] // num_units)[:, None]
        zero_N = torch.zeros(num_units * E, dtype=torch.int64, device=slot_TK.device)
        return zero_N.scatter_add(0, slot_TK.flatten(), one_TK.flatten()).view(num_units, E)

    def pairs(self) -> Pairs:
        """N = T·K pairs, token by token; those of padding, and those that are not sent, go nowhere."""
        T, K = self.expert_TK.shape
        token_N = torch.arange(T, device=self.expert_TK.device).repeat_interleave(K)
        expert_TK, counts_TK = self.expert_TK, self.counts_TK()
        if counts_TK is not None:
            expert_TK = expert_TK.where(counts_TK, self.num_experts)
        return Pairs(token_N, expert_TK.reshape(-1), self.gate_TK.reshape(-1))


@dataclass(frozen=True, kw_only=True)
class ExpertChoice(Routing):
    """Each expert chose C tokens.

    Attributes:
        token_EC: int64, distinct along C.
        gate_EC: weights on the expert's outputs.
    """

    form: ClassVar[Form] = "expert_choice"
    token_EC: Tensor
    gate_EC: Tensor

    def load_E(self) -> Tensor:
        """int64: valid tokens that each expert chose."""
        if self.valid_T is None:
            E, C = self.token_EC.shape
            return torch.full((E,), C, dtype=torch.int64, device=self.token_EC.device)
        return self.valid_T[self.token_EC].sum(1)

    def pairs(self) -> Pairs:
        """N = E·C pairs, expert by expert; a padding token's pairs go nowhere."""
        E, C = self.token_EC.shape
        expert_EC = torch.arange(E, device=self.token_EC.device)[:, None].expand(E, C)
        if self.valid_T is not None:
            expert_EC = expert_EC.where(self.valid_T[self.token_EC], E)
        return Pairs(self.token_EC.reshape(-1), expert_EC.reshape(-1), self.gate_EC.reshape(-1))


@dataclass(frozen=True, kw_only=True)
class Soft(Routing):
    """Every expert works for every token, in proportion.

    Attributes:
        combine_TEP: weight of slot P of expert E in token T's output.
        dispatch_TEP: weight of token T in slot P of expert E; None when each expert sees each token itself
            (1991's mixture; then P = 1).
    """

    form: ClassVar[Form] = "soft"
    combine_TEP: Tensor
    dispatch_TEP: Tensor | None = None

    def load_E(self) -> Tensor:
        """int64: every valid token, for each expert."""
        return self.num_valid().expand(self.num_experts).clone()


def share_of(load_BE: Tensor, dtype: torch.dtype) -> Tensor:
    """``f`` of balance losses: each expert's share of a unit's load; sums to 1, or to 0 for a unit without tokens."""
    return load_BE.to(dtype) / load_BE.sum(-1, keepdim=True).clamp(min=1)


def pairs_of(routing: Routing) -> Pairs:
    """The token-expert pairs of a sparse routing.

    Raises:
        ValueError: the routing is not of a sparse form.
    """
    if not isinstance(routing, TokenChoice | ExpertChoice):
        raise ValueError(
            f"this dispatcher carries token-expert pairs (forms token_choice, expert_choice), but the router gave "
            f"'{routing.form}'; the dispatcher 'soft' takes that"
        )
    return routing.pairs()
