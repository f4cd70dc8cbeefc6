"""Groups: rows sorted by expert, and the products that an expert bank needs over them.

An expert is written once, as if for one expert, over stacked weights. Which ``Groups`` it is given decides how it
runs: as a loop, as one grouped product, padded to capacity, across ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor


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
