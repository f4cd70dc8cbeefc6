"""Linear layers with adapters of low rank, in the place of those that a model is built with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.contracts.adapted import Read
from moekit.errors import Problem, SpecError
from moekit_models.lora import Lora


class Adapter(nn.Module):
    """``B A x``; X is the rank. Shapes: ``a_XD`` ``[rank, in]``, and ``b_HX`` ``[out, rank]``, which is 0 at first."""

    def __init__(self, rank: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.a_XD = nn.Parameter(torch.empty(rank, inputs))
        self.b_HX = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.uniform_(self.a_XD, -(inputs**-0.5), inputs**-0.5)  # as nn.Linear


class AdaptedLinear(nn.Module):
    """``W x + b + alpha / rank · B A x``; W and b, those of ``base``, are frozen."""

    def __init__(self, base: nn.Linear, spec: Lora) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.adapters = Adapter(spec.rank, base.in_features, base.out_features)
        self.scale, self.dropout = spec.alpha / spec.rank, spec.dropout

    @property
    def weight(self) -> Tensor:
        """``W + alpha / rank · B A``, for attention that multiplies by the matrix itself."""
        return self.base.weight + self.scale * (self.adapters.b_HX @ self.adapters.a_XD)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D] -> [..., H]``."""
        narrow = F.linear(F.dropout(x, self.dropout, self.training), self.adapters.a_XD)
        y: Tensor = self.base(x)
        return y + self.scale * F.linear(narrow, self.adapters.b_HX)

    def merged_parameter(self, name: str, read: Read) -> Tensor:
        """Rows of ``W + alpha / rank · B A``, computed in fp32 at least; the bias as it is."""
        own = read(f"base.{name}")
        if name != "weight":
            return own
        wide = torch.promote_types(own.dtype, torch.float32)
        a_XD, b_HX = read("adapters.a_XD", whole=True).to(wide), read("adapters.b_HX").to(wide)
        return (own.to(wide) + self.scale * (b_HX @ a_XD)).to(own.dtype)


def adapt(model: nn.Module, spec: Lora | None) -> None:
    """Puts an adapted layer in the place of every linear layer of a model's blocks that ``spec.at`` names.

    Raises:
        SpecError: no linear layer has such a word in its name.
    """
    if spec is None:
        return
    linear = {n: each for n, each in model.named_modules() if isinstance(each, nn.Linear) and "blocks" in n.split(".")}
    words = dict.fromkeys(part for name in linear for part in name.split(".") if not part.isdigit())
    if unknown := [word for word in spec.at if word not in words]:
        what = f"lora: no linear layer of the blocks has '{unknown[0]}' in its name"
        raise SpecError([Problem(what=what, at="model.lora.at", expected=", ".join(words))])
    for name, each in linear.items():
        parent, _, own = name.rpartition(".")
        if set(spec.at) & set(name.split(".")):
            setattr(model.get_submodule(parent), own, AdaptedLinear(each, spec))
