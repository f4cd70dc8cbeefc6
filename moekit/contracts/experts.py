"""The contract of expert banks: E experts of one shape, written once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moekit.groups import Groups
from moekit.init import Init, init_matrices


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
