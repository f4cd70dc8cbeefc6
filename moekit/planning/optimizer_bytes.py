"""What an optimizer keeps, read off one that has taken a step on a tiny copy of the model.

No two dimensions of a tiny parameter are of one length, so what each of the state's is as long as shows. It holds for
any optimizer whose state has its parameter's sizes, or some of them, or none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import torch
from torch import Tensor, nn

from moekit.planning.refill import refill
from moekit.registry import build
from moekit.spec.kinds import OptimizerSpec

PRIMES: Final = (2, 3, 5, 7, 11, 13, 17)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One tensor of an optimizer's state, for one parameter.

    Attributes:
        dims: for each of its dimensions, which one of the parameter it is as long as; -1 for a length of its own.
        lengths: what these come to in the tiny copy.
        itemsize: bytes of a number.
    """

    dims: tuple[int, ...]
    lengths: tuple[int, ...]
    itemsize: int

    def bytes(self, shape: Sequence[int]) -> int:
        """Its size for a parameter of such a shape."""
        sizes = (n if d < 0 else shape[d] for d, n in zip(self.dims, self.lengths, strict=True))
        return prod(sizes) * self.itemsize


def state_kinds(spec: OptimizerSpec, model: nn.Module, dtype: torch.dtype) -> Mapping[str, tuple[Kind, ...]]:
    """For each parameter's name, what the optimizer keeps of it.

    Args:
        spec: the optimizer.
        model: is emptied: its parameters are tiny afterwards.
        dtype: of the parameters that are kept.
    """
    refill(model, lambda t: torch.ones(PRIMES[: t.ndim], dtype=dtype if t.is_floating_point() else t.dtype))
    optimizer = build(spec, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {
        name: tuple(_kind(value) for value in optimizer.state[p].values() if isinstance(value, Tensor))
        for name, p in model.named_parameters()
        if p in optimizer.state
    }


def _kind(value: Tensor) -> Kind:
    dims = tuple(PRIMES.index(n) if n in PRIMES else -1 for n in value.shape)
    return Kind(dims=dims, lengths=tuple(value.shape), itemsize=value.element_size())
