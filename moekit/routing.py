"""Routing: a router's decision, in one of three forms. Dispatchers, balancers and reports work on it.

Shapes: T tokens, E experts, K experts per token, C tokens per expert, P slots per expert, N token-expert pairs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit.errors import MoekitError
from moekit.spec.kinds import Form


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """One loss of one layer. ``weight · value`` is added to the objective.

    Attributes:
        value: 0-d, a mean over tokens, as the paper states it before multiplying by the coefficient.
        weight: the coefficient.
    """

    value: Tensor
    weight: float


@dataclass(frozen=True)
class Pairs:
    """A routing as a flat list of (token, expert, gate), for sparse dispatchers.

    Attributes:
        token_N: int64, the token of each pair.
        expert_N: int64, its expert; ``E`` for a pair that is not sent to any (padding, dropped).
        gate_N: the weight of the expert's output, through which the gradient reaches the router.
        all_sent: whether every pair is sent, as a static fact that spares dispatchers the search for those that are
            not. False is always right; only ``complete`` makes it True, and ``replace`` makes it False again.
    """

    token_N: Tensor
    expert_N: Tensor
    gate_N: Tensor
    all_sent: bool = field(default=False, init=False)

    def complete(self) -> Pairs:
        """These pairs, of which the caller knows that each is sent to an expert."""
        object.__setattr__(self, "all_sent", True)
        return self


@dataclass(frozen=True, kw_only=True)
class Routing(ABC):
    """What all forms of routing have in common. Floats are fp32 at least, under autocast too.

    Attributes:
        logits_TE: the router's outputs.
        scores_TE: affinities: logits after the score function (softmax, sigmoid, ...), without any selection bias.
        sigmoid: whether ``scores_TE`` are the sigmoids of ``logits_TE``, from which shares are then computed.
        valid_T: bool, False for padding; None when all tokens are valid. Padding reaches no expert and no statistic.
        smooth_load_E: the expected number of valid tokens of each expert under the router's noise, differentiable; None
            from routers without noise, and outside training.
        own_loss: a loss on the router's own parameters that only the router can compute; None from most.
    """

    form: ClassVar[Form]
    logits_TE: Tensor
    scores_TE: Tensor
    sigmoid: bool = False
    valid_T: Tensor | None = None
    smooth_load_E: Tensor | None = None
    own_loss: LossTerm | None = None

    @property
    def num_experts(self) -> int:
        """E."""
        return self.scores_TE.shape[1]

    @abstractmethod
    def load_E(self) -> Tensor:
        """int64: valid tokens sent to each expert, before drops."""

    def num_valid(self) -> Tensor:
        """0-d int64: the number of tokens that are not padding."""
        if self.valid_T is None:
            return torch.full((), self.scores_TE.shape[0], dtype=torch.int64, device=self.scores_TE.device)
        return self.valid_T.sum()

    def share_TE(self) -> Tensor:
        """Each valid token's affinities, divided by their sum; 0 for padding. Differentiable.

        Nothing is added to the sum. Next to a guard such as 1e-20 a token's shares would vanish once its sigmoids are
        smaller, and lowering all logits would "solve" a balance loss (Megatron-LM, issue 1545).
        """
        if self.sigmoid:
            return self.of_valid(F.logsigmoid(self.of_valid(self.logits_TE)).softmax(-1))
        scores_TE = self.of_valid(self.scores_TE)
        sum_T1 = scores_TE.sum(-1, keepdim=True)
        return scores_TE / sum_T1.where(sum_T1 >= torch.finfo(sum_T1.dtype).tiny, 1)

    def of_valid(self, of_TE: Tensor) -> Tensor:
        """The same values, 0 for padding."""
        return of_TE if self.valid_T is None else of_TE.masked_fill(~self.valid_T[:, None], 0)


@dataclass(frozen=True, kw_only=True)
class TokenChoice(Routing):
    """Each token chose K experts.

    Attributes:
        expert_TK: int64, distinct along K.
        gate_TK: weights of the experts' outputs.
        sent_TK: bool, False for a choice that the router itself does not send (a second expert skipped at random, an
            expert below a threshold). It reaches no expert and does not count as load. None when all are sent.
    """

    form: ClassVar[Form] = "token_choice"
    expert_TK: Tensor
    gate_TK: Tensor
    sent_TK: Tensor | None = None

    def counts_TK(self) -> Tensor | None:
        """bool: the choices that are sent and belong to valid tokens; None when all do."""
        if self.valid_T is None:
            return self.sent_TK
        valid_TK = self.valid_T[:, None].expand(self.expert_TK.shape)
        return valid_TK if self.sent_TK is None else valid_TK & self.sent_TK

    def load_E(self) -> Tensor:
        """int64: valid tokens sent to each expert."""
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
        """N = T·K pairs, token by token. Those of padding, and those that are not sent, have expert E."""
        T, K = self.expert_TK.shape
        token_N = torch.arange(T, device=self.expert_TK.device)[:, None].expand(T, K).reshape(-1)
        expert_TK, counts_TK = self.expert_TK, self.counts_TK()
        if counts_TK is not None:
            expert_TK = expert_TK.where(counts_TK, self.num_experts)
        pairs = Pairs(token_N, expert_TK.reshape(-1), self.gate_TK.reshape(-1))
        return pairs.complete() if counts_TK is None else pairs


@dataclass(frozen=True, kw_only=True)
class ExpertChoice(Routing):
    """Each expert chose C tokens.

    Attributes:
        token_EC: int64, distinct along C.
        gate_EC: weights of the expert's outputs.
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
        """N = E·C pairs, expert by expert. Those of padding have expert E."""
        E, C = self.token_EC.shape
        expert_EC = torch.arange(E, device=self.token_EC.device)[:, None].expand(E, C)
        if self.valid_T is not None:
            expert_EC = expert_EC.where(self.valid_T[self.token_EC], E)
        pairs = Pairs(self.token_EC.reshape(-1), expert_EC.reshape(-1), self.gate_EC.reshape(-1))
        return pairs.complete() if self.valid_T is None else pairs


@dataclass(frozen=True, kw_only=True)
class Soft(Routing):
    """Every expert processes every token, or weighted averages (slots) of all tokens.

    Attributes:
        combine_TEP: weight of slot P of expert E in token T's output.
        dispatch_TEP: weight of token T in slot P of expert E; None when each expert sees each token itself, as in the
            mixture of 1991 (then P = 1).
    """

    form: ClassVar[Form] = "soft"
    combine_TEP: Tensor
    dispatch_TEP: Tensor | None = None

    def load_E(self) -> Tensor:
        """int64: the number of valid tokens, for each expert."""
        return self.num_valid().expand(self.num_experts).clone()


def token_choice_of(routing: Routing, part: str) -> TokenChoice:
    """The routing, for a part such as ``balancer 'load_balance'`` that takes no other form than token choice.

    Raises:
        MoekitError: the routing is of another form.
    """
    if not isinstance(routing, TokenChoice):
        raise MoekitError(
            f"the {part} takes routings by token choice (form token_choice), but the router gave '{routing.form}'\n"
            f"  expected a router that chooses experts for each token, or another {part.partition(' ')[0]}"
        )
    return routing


def lost_tokens(before: Routing, after: Routing) -> Tensor:
    """0-d int64: the valid tokens that had an expert before a limit on a token choice, and have none after it."""
    return (_has_expert_T(before) & ~_has_expert_T(after)).sum()


def _has_expert_T(routing: Routing) -> Tensor:
    """bool: tokens that are sent to some expert; all of them in forms in which tokens do not choose."""
    counts_TK = routing.counts_TK() if isinstance(routing, TokenChoice) else None
    if counts_TK is None:
        return torch.ones(len(routing.scores_TE), dtype=torch.bool, device=routing.scores_TE.device)
    return counts_TK.any(1)


def pairs_of(routing: Routing) -> Pairs:
    """The token-expert pairs of a sparse routing.

    Raises:
        ValueError: the routing is soft.
    """
    if not isinstance(routing, TokenChoice | ExpertChoice):
        raise ValueError(
            f"this dispatcher takes token-expert pairs (forms token_choice, expert_choice), but the router gave "
            f"'{routing.form}'; choose a dispatcher that takes that form"
        )
    return routing.pairs()


def gates_of(routing: Routing) -> Tensor:
    """The weights of the experts' outputs, in the shape of the routing's form."""
    if isinstance(routing, TokenChoice):
        return routing.gate_TK
    if isinstance(routing, ExpertChoice):
        return routing.gate_EC
    assert isinstance(routing, Soft)
    return routing.combine_TEP
