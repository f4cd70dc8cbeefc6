"""What a layer is made of: rows grouped by expert, the experts, the router, the dispatcher, the balancers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.init import Init, init_matrices
from moekit.routing import LossTerm, Routing


class Groups(ABC):
    """N rows, sorted by the expert they belong to. Rows past the last group belong to no expert: they come out 0.

    Attributes:
        num_experts: E.
        num_rows: N.
    """

    num_experts: int
    num_rows: int

    @abstractmethod
    def linear(self, x_ND: Tensor, w_EHD: Tensor, b_EH: Tensor | None = None) -> Tensor:
        """``y_NH``: each row through its own expert's weight (laid out like ``nn.Linear``: out, in) and bias."""

    @abstractmethod
    def per_row(self, p_EX: Tensor) -> Tensor:
        """``p_NX``: for each row its own expert's slice of a parameter stacked over experts."""

    @abstractmethod
    def split(self, x_ND: Tensor) -> list[Tensor]:
        """The rows of each expert, E tensors of shape ``[n_e, D]``, for experts that are not stacked.

        The E outputs, concatenated, are the first rows of the bank's output; the rest is 0.
        """


class UniformGroups(Groups):
    """The same number of rows for every expert: dense layers (E = 1), shared experts, soft routing, capacity.

    Raises:
        ValueError: ``num_rows`` is no multiple of ``num_experts``.
    """

    def __init__(self, num_experts: int, num_rows: int) -> None:
        if num_rows % num_experts:
            raise ValueError(f"{num_rows} rows cannot be shared evenly by {num_experts} experts")
        self.num_experts = num_experts
        self.num_rows = num_rows

    def linear(self, x_ND: Tensor, w_EHD: Tensor, b_EH: Tensor | None = None) -> Tensor:
        """``y_NH``, as one batched product."""
        if self.num_experts == 1:
            return F.linear(x_ND, w_EHD.squeeze(0), None if b_EH is None else b_EH.squeeze(0))
        x_ECD = self._by_expert(x_ND)
        # baddbmm, not a product and a sum: autocast must reach the bias too
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
        return self._all_rows(parts)

    def per_row(self, p_EX: Tensor) -> Tensor:
        """``p_NX``, each expert's slice repeated for its rows."""
        return self._all_rows([p_EX[e].expand(n, *p_EX.shape[1:]) for e, n in enumerate(self.sizes)])

    def split(self, x_ND: Tensor) -> list[Tensor]:
        """The rows of each expert."""
        return list(torch.split(x_ND[: sum(self.sizes)], self.sizes))

    def _all_rows(self, parts: list[Tensor]) -> Tensor:
        y = torch.cat(parts)
        rest = self.num_rows - y.shape[0]
        return torch.cat([y, y.new_zeros(rest, *y.shape[1:])]) if rest else y


@dataclass(frozen=True, kw_only=True)
class StandardForm:
    """The weights of a bank that computes ``down(act(gate(x)) * up(x))`` or ``down(act(up(x)))``, and nothing else.

    A dispatcher with a kernel for that may use them in place of the bank's ``forward``, which stays the truth that the
    kernel is tested against.

    Attributes:
        activation: ``silu``, ``gelu`` (exact), ``relu`` or ``sigmoid``.
        gated: whether there is a gate.
        w_in_EHD: ``[E, 2H, D]``, the gate in the first H rows of each expert and up in the rest; ``[E, H, D]`` without
            a gate.
        w_out_EOH: ``[E, O, H]``.
    """

    activation: str
    gated: bool
    w_in_EHD: Tensor
    w_out_EOH: Tensor


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

    def init_weights(self, init: Init) -> None:
        """Draws the weights as the model that holds the layer asks."""
        init_matrices(self, init)

    def standard_form(self) -> StandardForm | None:
        """The weights, where this bank is of a form that fused kernels know; None where it is not (or not now)."""
        return None

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

    def init_weights(self, init: Init) -> None:
        """Keeps the modules' own initialisation: they are the caller's."""


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
