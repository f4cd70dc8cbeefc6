"""The interfaces of a Mixture-of-Experts layer: what each component must do, and what passes between them.

In the order in which a layer uses them: ``LayerDims`` (sizes), ``Groups`` (rows sorted by expert), ``ExpertBank`` (all
routed experts as one module), ``Router`` (tokens to ``Routing``), ``Dispatcher`` (tokens to experts and back),
``Balancer`` (keeps the load even), ``LayerReport`` (what a forward pass returns besides its output).
``moekit/moe_layer.py`` connects them; plugins implement them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.contracts.returned import check_rows
from moekit.init import Init, init_matrices
from moekit.products import linear
from moekit.routing import LossTerm, Routing


@dataclass(frozen=True, kw_only=True)
class LayerDims:
    """The sizes that the components of a layer share.

    Attributes:
        dim: D, width of the layer's input.
        num_experts: E, routed experts.
        out_dim: O, width of its output; default: D.
    """

    dim: int
    num_experts: int
    out_dim: int = 0

    def __post_init__(self) -> None:
        if not self.out_dim:
            object.__setattr__(self, "out_dim", self.dim)


class Groups(ABC):
    """N rows sorted by expert, and the operations that treat each row by its own expert.

    Rows after those of the last expert belong to no expert; their results are 0.

    Attributes:
        num_experts: E.
        num_rows: N.
    """

    num_experts: int
    num_rows: int

    @abstractmethod
    def linear(self, x_ND: Tensor, w_EHD: Tensor, b_EH: Tensor | None = None) -> Tensor:
        """``y_NH``: each row times its expert's weight, plus its bias. Weights are laid out as in ``nn.Linear``."""

    @abstractmethod
    def per_row(self, p_EX: Tensor) -> Tensor:
        """``p_NX``: for each row, its expert's slice of a parameter that is stacked over experts."""

    @abstractmethod
    def split(self, x_ND: Tensor) -> list[Tensor]:
        """The rows of each expert, E tensors ``[n_e, D]``, for experts whose weights are not stacked.

        The concatenation of the experts' outputs begins the output of the experts module; the remaining rows are 0.
        """


class UniformGroups(Groups):
    """The same number of rows for every expert, as in dense layers (E = 1), shared experts, soft routing, capacity.

    Raises:
        ValueError: ``num_rows`` is not a multiple of ``num_experts``.
    """

    def __init__(self, num_experts: int, num_rows: int) -> None:
        if num_rows % num_experts:
            raise ValueError(f"{num_rows} rows cannot be shared evenly by {num_experts} experts")
        self.num_experts = num_experts
        self.num_rows = num_rows

    def linear(self, x_ND: Tensor, w_EHD: Tensor, b_EH: Tensor | None = None) -> Tensor:
        """``y_NH``, as one batched matrix product."""
        if self.num_experts == 1:
            return linear(x_ND, w_EHD.squeeze(0), None if b_EH is None else b_EH.squeeze(0))
        x_ECD = self._by_expert(x_ND)
        # baddbmm rather than a product and a sum, so that autocast converts the bias too
        y_ECH = x_ECD @ w_EHD.mT if b_EH is None else torch.baddbmm(b_EH[:, None], x_ECD, w_EHD.mT)
        return y_ECH.reshape(self.num_rows, w_EHD.shape[1])

    def per_row(self, p_EX: Tensor) -> Tensor:
        """``p_NX``, each expert's slice repeated for its rows."""
        return p_EX.repeat_interleave(self.num_rows // self.num_experts, dim=0)

    def split(self, x_ND: Tensor) -> list[Tensor]:
        """E equal parts."""
        return list(self._by_expert(x_ND).unbind(0))

    def _by_expert(self, x_ND: Tensor) -> Tensor:
        return x_ND.reshape(self.num_experts, self.num_rows // self.num_experts, x_ND.shape[1])


class LoopGroups(Groups):
    """Any number of rows for each expert, known on the host: every product is a Python loop over slices.

    For the reference dispatcher (``loop``) and the conformance kit. Plain rather than fast, and independent of the
    groups that are tested against it.

    Args:
        sizes: the number of rows of each expert.
        num_rows: N, at least the sum of the sizes, which is the default.
    """

    def __init__(self, sizes: list[int], num_rows: int | None = None) -> None:
        self.sizes = sizes
        self.num_experts = len(sizes)
        self.num_rows = sum(sizes) if num_rows is None else num_rows

    def linear(self, x_ND: Tensor, w_EHD: Tensor, b_EH: Tensor | None = None) -> Tensor:
        """``y_NH``, expert by expert."""
        parts = [F.linear(x, w_EHD[e], None if b_EH is None else b_EH[e]) for e, x in enumerate(self.split(x_ND))]
        return all_rows(parts, self.num_rows)

    def per_row(self, p_EX: Tensor) -> Tensor:
        """``p_NX``, each expert's slice repeated for its rows."""
        return all_rows([p_EX[e].expand(n, *p_EX.shape[1:]) for e, n in enumerate(self.sizes)], self.num_rows)

    def split(self, x_ND: Tensor) -> list[Tensor]:
        """The rows of each expert."""
        return list(torch.split(x_ND[: sum(self.sizes)], self.sizes))


def all_rows(parts: list[Tensor], num_rows: int) -> Tensor:
    """The rows of all experts, and zeros for those that belong to none."""
    y_NX = torch.cat(parts)
    rest = num_rows - y_NX.shape[0]
    return torch.cat([y_NX, y_NX.new_zeros(rest, *y_NX.shape[1:])]) if rest else y_NX


@dataclass(frozen=True, kw_only=True)
class StandardForm:
    """The weights of an experts module that computes exactly ``down(act(gate(x)) * up(x))`` or ``down(act(up(x)))``.

    A dispatcher with a fused kernel may use these weights instead of calling the module, whose ``forward`` remains the
    reference that the kernel is tested against.

    Attributes:
        activation: ``silu``, ``gelu`` (exact), ``relu`` or ``sigmoid``.
        gated: whether ``act(gate(x))`` multiplies ``up(x)``.
        w_in_EHD: gated, ``[E, 2H, D]``: of each expert first the H rows of the gate, then those of up. Otherwise
            ``[E, H, D]``.
        w_out_EOH: ``[E, O, H]``.
    """

    activation: str
    gated: bool
    w_in_EHD: Tensor
    w_out_EOH: Tensor


class ExpertBank(nn.Module, ABC):
    """All E routed experts of a layer, as one module. Built as ``Target(spec, dims)``.

    A call raises ``PluginError`` unless ``forward`` returns a row of width O for every row.

    Attributes:
        num_experts: E.
        out_dim: O.
    """

    num_experts: int
    out_dim: int

    def __init__(self) -> None:
        super().__init__()
        self.register_forward_hook(check_rows)  # here, because dispatchers of third parties call the module

    @abstractmethod
    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        """``y_NO``: each row through its own expert. Rows are sorted by expert; ``groups`` computes the products."""

    def init_weights(self, init: Init) -> None:
        """Initialises the weights as the model that contains the layer specifies."""
        init_matrices(self, init)

    def standard_form(self) -> StandardForm | None:
        """The weights, if this module currently computes what fused kernels can compute; else None."""
        return None

    @staticmethod
    def from_modules(modules: Iterable[nn.Module], out_dim: int) -> ExpertBank:
        """An experts module of arbitrary modules ``[n, D] -> [n, O]``, run one after the other."""
        return ModuleExperts(modules, out_dim)


class ModuleExperts(ExpertBank):
    """An experts module of independent modules, run in a Python loop."""

    def __init__(self, modules: Iterable[nn.Module], out_dim: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(modules)
        self.num_experts = len(self.experts)
        self.out_dim = out_dim

    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        """``y_NO``: each module on its own rows."""
        rows = groups.split(x_ND)
        return all_rows([expert(x_nD) for expert, x_nD in zip(self.experts, rows, strict=True)], x_ND.shape[0])

    def init_weights(self, init: Init) -> None:
        """Does nothing: the caller made the modules, so their initialisation is kept."""


class Router(nn.Module, ABC):
    """Decides which experts process which tokens. Built as ``Target(spec, dims)``.

    Computes in fp32 at least, under autocast too. Does not modify its input. A selection bias affects which experts
    are chosen, never a gate.
    """

    @abstractmethod
    def forward(
        self,
        x_TD: Tensor,
        *,
        valid_T: Tensor | None = None,
        selection_bias_E: Tensor | None = None,
        token_T: Tensor | None = None,
    ) -> Routing:
        """Routes T tokens.

        Args:
            x_TD: tokens, any float dtype.
            valid_T: bool, False for padding; None when all tokens are valid.
            selection_bias_E: fp32, added to the affinities when experts are chosen, and only then.
            token_T: int64, the ids of the tokens, for routers that read them (``needs_tokens``); None where none are
                known. Padding has any id of the vocabulary.
        """

    def init_weights(self, init: Init) -> None:
        """Initialises the weights as the model that contains the layer specifies."""
        init_matrices(self, init)


@dataclass(frozen=True, kw_only=True)
class Dispatched:
    """The result of a dispatcher.

    Attributes:
        y_TO: combined outputs; 0 for padding, and for a token whose pairs were all dropped.
        dropped: 0-d int64, the number of pairs beyond capacity.
        dropped_tokens: 0-d int64, the tokens of which every pair was dropped; None where nothing can be dropped.
        expert_TEO: every expert's own output for every token, for objectives over experts; None unless the dispatcher
            computes it (soft routing without slots).
    """

    y_TO: Tensor
    dropped: Tensor
    dropped_tokens: Tensor | None = None
    expert_TEO: Tensor | None = None


class Dispatcher(nn.Module, ABC):
    """Sends tokens to the experts that a routing names, and combines their outputs. Built as ``Target(spec, dims)``.

    Has no weights. Its spec states which forms of routing it takes.

    Attributes:
        local_experts: indices of the experts whose weights this rank holds; None for all. The layer builds its
            experts module with this number of experts.
    """

    local_experts: range | None = None

    @abstractmethod
    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        """Dispatches, computes and combines: ``y_t = sum of gate · expert(x_t)`` over the pairs of token t.

        Args:
            x_TD: tokens, sequence after sequence.
            routing: the router's decision.
            experts: the experts module.
            num_sequences: B, for dispatchers that treat each sequence separately.
        """

    def start(
        self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1
    ) -> Callable[[], Dispatched]:
        """Starts asynchronous work, and returns a function that finishes it and returns what ``forward`` would.

        The layer computes shared experts in between. Override this in dispatchers that wait for other ranks.
        """
        return partial(self, x_TD, routing, experts, num_sequences=num_sequences)

    def limit(self, routing: Routing, num_sequences: int) -> tuple[Routing, Tensor]:
        """Applies the capacity limit alone, without computing anything.

        Override this in dispatchers that drop pairs. Under ``expert_parallel`` the rank that has the tokens decides
        what is dropped, but other ranks compute.

        Returns:
            The routing, with ``sent_TK`` False for dropped pairs (unchanged if there are none), and the number of
            dropped pairs (0-d int64).
        """
        return routing, torch.zeros((), dtype=torch.int64, device=routing.scores_TE.device)


@dataclass(frozen=True, kw_only=True)
class BalanceContext:
    """What a balancer's loss may use in addition to the routing.

    Attributes:
        num_sequences: B. Token t belongs to sequence ``t // (T // B)``.
        training: whether the layer is in training mode.
    """

    num_sequences: int
    training: bool


class Balancer(nn.Module, ABC):
    """Keeps the load even by a loss, a selection bias, or both. Built as ``Target(spec, dims)``.

    State is kept in persistent fp32 buffers. Only ``step`` changes it, never ``forward``, so that recomputation and
    gradient accumulation count no token twice. The buffers stay fp32 when the model is cast to another dtype: in bf16
    a bias near 1 could not change by 1e-3.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Called by ``.to``, ``.bfloat16`` and the like: moves the state to another device, but keeps its dtype."""

        def device_only(state: Tensor) -> Tensor:
            moved = fn(state)
            return moved if moved.dtype == state.dtype else state.to(moved.device)

        super()._apply(device_only, recurse)  # type: ignore[no-untyped-call]
        return self

    def loss(self, routing: Routing, context: BalanceContext) -> LossTerm | None:
        """The loss of one forward pass, or None."""
        return None

    def selection_bias(self) -> Tensor | None:
        """fp32 ``[E]``, added to affinities when experts are chosen; or None."""
        return None

    def step(self, load_E: Tensor, *, progress: float = 0.0) -> None:
        """Updates the state, once per optimizer step.

        Args:
            load_E: int64, the load of the whole global batch.
            progress: fraction of training completed, 0 to 1.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What one forward pass of a layer observed. Returned, never stored.

    Attributes:
        routing: the router's decision.
        dropped: 0-d int64, pairs beyond capacity.
        dropped_tokens: 0-d int64, tokens that lost all their experts; None where nothing can be dropped.
        losses: the balancers' losses by name; the router's own loss, if it has one, as ``router``. Empty under
            ``torch.inference_mode``, where nothing is trained.
        expert_TEO: every expert's own output for every token, under soft routing without slots; else None.
    """

    routing: Routing
    dropped: Tensor
    dropped_tokens: Tensor | None = None
    losses: Mapping[str, LossTerm] = field(default_factory=dict)
    expert_TEO: Tensor | None = None

    @property
    def load_E(self) -> Tensor:
        """int64: valid tokens sent to each expert, before drops. Counted at each access."""
        return self.routing.load_E()

    def loss(self) -> Tensor:
        """0-d: the weighted sum of the layer's losses; 0 if it has none."""
        zero = self.routing.scores_TE.new_zeros(())
        return sum((term.weight * term.value for term in self.losses.values()), zero)
