"""The contracts that make a layer of an expert bank (``experts.py``): router, dispatcher, balancer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from moekit.contracts.experts import ExpertBank
from moekit.init import Init, init_matrices
from moekit.routing import LossTerm, Routing


@dataclass(frozen=True, kw_only=True)
class LayerDims:
    """Sizes that the parts of one layer share.

    Attributes:
        dim: D, width of the tokens that come in.
        num_experts: E, routed experts.
        out_dim: O, width that comes out; D when left out.
    """

    dim: int
    num_experts: int
    out_dim: int = 0

    def __post_init__(self) -> None:
        if not self.out_dim:
            object.__setattr__(self, "out_dim", self.dim)


class Router(nn.Module, ABC):
    """Turns tokens into a routing. Built as ``Target(spec, dims)``.

    Its arithmetic is at least fp32 whatever autocast says; it never changes its input; a selection bias decides
    which experts are chosen and never enters a gate.
    """

    @abstractmethod
    def forward(
        self, x_TD: Tensor, *, valid_T: Tensor | None = None, selection_bias_E: Tensor | None = None
    ) -> Routing:
        """Routes T tokens.

        Args:
            x_TD: tokens, any float dtype.
            valid_T: bool, False for padding; None when all are valid.
            selection_bias_E: fp32, added to the affinities for choosing only.
        """

    def init_weights(self, init: Init) -> None:
        """Draws the weights as the model that holds the layer asks."""
        init_matrices(self, init)


@dataclass(frozen=True, kw_only=True)
class Dispatched:
    """What a dispatcher brings back.

    Attributes:
        y_TO: combined outputs; 0 for a token whose pairs were all dropped, and for padding.
        dropped: 0-d int64, the number of pairs beyond capacity.
        expert_TEO: every expert's own output for every token, where the dispatcher computes it (soft routing
            without slots), for objectives over experts; else None.
    """

    y_TO: Tensor
    dropped: Tensor
    expert_TEO: Tensor | None = None


class Dispatcher(nn.Module, ABC):
    """Carries tokens to the experts and back along a routing. Built as ``Target(spec, dims)``; has no weights.

    Which forms of routing it takes is the claim of its spec.

    Attributes:
        local_experts: the experts whose weights this process holds, by number; None for all. The layer's bank is
            built with as many.
    """

    local_experts: range | None = None

    @abstractmethod
    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        """Sends, computes, combines: ``y_t = sum of gate · expert(x_t)`` over the pairs of t.

        Args:
            x_TD: tokens.
            routing: where they go.
            experts: the bank.
            num_sequences: B, for those that treat sequences apart; tokens lie sequence after sequence.
        """

    def start(
        self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1
    ) -> Callable[[], Dispatched]:
        """Begins what can go on by itself; what comes back is called for the rest, and gives what ``forward`` gives.

        To be overridden by dispatchers that wait for other processes: in between the layer computes shared experts.
        """
        return partial(self, x_TD, routing, experts, num_sequences=num_sequences)

    def limit(self, routing: Routing, num_sequences: int) -> tuple[Routing, Tensor]:
        """What of a routing this dispatcher would carry, and the number of pairs (0-d int64) that it would drop.

        To be overridden by dispatchers that drop: another process may do the carrying (``expert_parallel``), and who is
        dropped is decided where the tokens are.

        Args:
            routing: what the router decided.
            num_sequences: B.

        Returns:
            The routing with ``sent_TK`` false for what is dropped; as it came where nothing is.
        """
        return routing, torch.zeros((), dtype=torch.int64, device=routing.scores_TE.device)


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What one forward pass of a layer saw. Returned, never stored.

    Attributes:
        routing: what the router decided.
        load_E: int64, valid tokens sent to each expert, before drops.
        dropped: 0-d int64, pairs beyond capacity.
        losses: the balancers' terms by their names; the router's own, where it has one, under ``router``.
        expert_TEO: every expert's own output, under soft routing without slots; else None.
    """

    routing: Routing
    load_E: Tensor
    dropped: Tensor
    losses: Mapping[str, LossTerm] = field(default_factory=dict)
    expert_TEO: Tensor | None = None

    def loss(self) -> Tensor:
        """0-d: the weighted sum of the layer's losses (0 when it has none)."""
        zero = torch.zeros((), dtype=self.routing.scores_TE.dtype, device=self.load_E.device)
        return sum((term.weight * term.value for term in self.losses.values()), zero)


@dataclass(frozen=True, kw_only=True)
class BalanceContext:
    """What a balancer may know beside the routing.

    Attributes:
        num_sequences: B. Tokens lie sequence after sequence: token t belongs to sequence ``t // (T // B)``.
        training: whether the layer is in training mode.
    """

    num_sequences: int
    training: bool


class Balancer(nn.Module, ABC):
    """Keeps the load even, by a loss, by a selection bias, or both. Built as ``Target(spec, dims)``.

    State is kept in persistent fp32 buffers and changes in ``step`` alone: never in forward, so recompute,
    compile and accumulation cannot count twice. It stays fp32 when the model is cast to another dtype: a bias in
    bf16 would lose steps of 1e-3 once it has grown to 1.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What ``.to``, ``.bfloat16`` and their like call on every tensor: the state follows devices, not dtypes."""

        def device_only(state: Tensor) -> Tensor:
            moved = fn(state)
            return moved if moved.dtype == state.dtype else state.to(moved.device)

        super()._apply(device_only, recurse)  # type: ignore[no-untyped-call]
        return self

    def loss(self, routing: Routing, context: BalanceContext) -> LossTerm | None:
        """The loss of one forward pass, or None."""
        return None

    def selection_bias(self) -> Tensor | None:
        """fp32 ``[E]`` to be added to affinities for choosing, or None."""
        return None

    def step(self, load_E: Tensor, *, progress: float = 0.0) -> None:
        """Called once per optimizer step.

        Args:
            load_E: int64, the load of the whole global batch.
            progress: the share of the training run that lies behind, 0 to 1.
        """
        return None
