"""The four contracts that make a layer: router, expert bank, dispatcher, balancer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

from moekit.groups import Groups
from moekit.routing import Routing


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

    def init_weights(self, std: float) -> None:
        """Draws the weights from N(0, std²), as the model that holds the layer asks."""
        init_matrices(self, std)


class ExpertBank(nn.Module, ABC):
    """E experts of one shape. Built as ``Target(spec, dims)``.

    Attributes:
        num_experts: E.
        out_dim: O.
    """

    num_experts: int
    out_dim: int

    @abstractmethod
    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        """``y_NO``: each row through its own expert. Rows are sorted by expert; ``groups`` does the products."""

    def init_weights(self, std: float) -> None:
        """Draws the weights from N(0, std²), as the model that holds the layer asks."""
        init_matrices(self, std)

    @staticmethod
    def from_modules(modules: Iterable[nn.Module], out_dim: int) -> ExpertBank:
        """A bank of any modules that map ``[n, D] -> [n, O]``, run one after the other."""
        return ModuleExperts(modules, out_dim)


class ModuleExperts(ExpertBank):
    """A bank of independent modules, for whoever does not mind the loop."""

    def __init__(self, modules: Iterable[nn.Module], out_dim: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(modules)
        self.num_experts = len(self.experts)
        self.out_dim = out_dim

    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        """``y_NO``: each expert on its own rows."""
        parts = [expert(x) for expert, x in zip(self.experts, groups.split(x_ND), strict=True)]
        y_NO = torch.cat(parts)
        missing = x_ND.shape[0] - y_NO.shape[0]
        return torch.cat([y_NO, y_NO.new_zeros(missing, self.out_dim)]) if missing else y_NO

    def init_weights(self, std: float) -> None:
        """Keeps the modules' own initialisation: they are the caller's."""


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
    """

    @abstractmethod
    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank) -> Dispatched:
        """Sends, computes, combines: ``y_t = sum of gate · expert(x_t)`` over the pairs of t."""


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """One loss of one layer. What is added to the objective is ``weight · value``.

    Attributes:
        value: 0-d tensor, a mean over tokens, as the paper states it before its coefficient.
        weight: the coefficient.
    """

    value: Tensor
    weight: float


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What one forward pass of a layer saw. Returned, never stored.

    Attributes:
        routing: what the router decided.
        load_E: int64, valid tokens sent to each expert, before drops.
        dropped: 0-d int64, pairs beyond capacity.
        losses: the balancers' terms by their names.
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

    def step(self, load_E: Tensor) -> None:
        """Called once per optimizer step with the load of the whole global batch (int64 ``[E]``)."""
        return None


def init_matrices(module: nn.Module, std: float) -> None:
    """Draws every weight of two or more dimensions from N(0, std²) and sets biases (named ``b_...``, ``bias``) to 0.

    One-dimensional parameters that are no biases (norms' gains, learned scales) keep what they have.
    """
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2].startswith(("b_", "bias")):
            nn.init.zeros_(parameter)
        elif parameter.ndim >= 2:
            nn.init.normal_(parameter, std=std)
