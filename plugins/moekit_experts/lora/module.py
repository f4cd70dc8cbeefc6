"""LoRA over any experts module, through the products that it asks of its groups. Reference: ``naive.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from moekit.contracts import ExpertBank, Init, LayerDims
from moekit.contracts.adapted import Read
from moekit.contracts.layer import Groups
from moekit.errors import MoekitError
from moekit.registry import build
from moekit_experts.lora import Lora
from moekit_experts.stacked import init_as_linear, stacked


class Adapter(nn.Module):
    """``B A x`` for each expert; X is the rank.

    Shapes: ``w_a_EXD`` ``[E, rank, in]``, ``w_b_EOX`` ``[E, out, rank]``, 0 at first.
    """

    def __init__(self, num_experts: int, rank: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.w_a_EXD = stacked(num_experts, rank, inputs)
        self.w_b_EOX = stacked(num_experts, outputs, rank)

    def reset_parameters(self) -> None:
        """Initialises A like ``nn.Linear``, and B with 0, so that nothing changes at first."""
        init_as_linear(self.w_a_EXD.shape[2], self.w_a_EXD)
        nn.init.zeros_(self.w_b_EOX)


class AdaptedGroups(Groups):
    """Groups whose products with some weights have an adapter's output added.

    Args:
        groups: that compute.
        adapters: each weight that is adapted, and its adapter.
        scale: what an adapter's output is multiplied by.
        drop: dropout of an adapter's input.

    Attributes:
        used: how many products had an adapter.
    """

    def __init__(
        self,
        groups: Groups,
        adapters: Sequence[tuple[Tensor, Adapter]],
        scale: float,
        drop: Callable[[Tensor], Tensor],
    ) -> None:
        self.groups, self.adapters, self.scale, self.drop = groups, adapters, scale, drop
        self.num_experts, self.num_rows = groups.num_experts, groups.num_rows
        self.used = 0

    def linear(self, x_ND: Tensor, w_EHD: Tensor, b_EH: Tensor | None = None) -> Tensor:
        """``y_NH``, with the adapter's output if the weight has one."""
        y_NH = self.groups.linear(x_ND, w_EHD, b_EH)
        for weight, adapter in self.adapters:
            if weight is w_EHD:
                self.used += 1
                narrow_NX = self.groups.linear(self.drop(x_ND), adapter.w_a_EXD)
                return y_NH + self.scale * self.groups.linear(narrow_NX, adapter.w_b_EOX)
        return y_NH

    def per_row(self, p_EX: Tensor) -> Tensor:
        """As the groups do."""
        return self.groups.per_row(p_EX)

    def split(self, x_ND: Tensor) -> list[Tensor]:
        """As the groups do."""
        return self.groups.split(x_ND)


@final
class LoraExperts(ExpertBank):
    """``W x + alpha / rank · B A x`` for every stacked matrix W of the base, whose parameters are all frozen.

    Source: Hu et al. 2021, LoRA (arXiv 2106.09685), equation 3, for each expert. The base computes as it does alone;
    the products that it asks of its groups (``groups.linear``) get the adapters' outputs.

    Raises:
        MoekitError: the base has no matrix that is stacked over experts.
    """

    def __init__(self, spec: Lora, dims: LayerDims) -> None:
        super().__init__()
        self.spec = spec
        self.base: ExpertBank = build(spec.plain(), dims)
        self.num_experts, self.out_dim = self.base.num_experts, self.base.out_dim
        self.base.requires_grad_(False)
        matrices = {n: p for n, p in self.base.named_parameters() if p.ndim == 3 and p.shape[0] == self.num_experts}
        if not matrices:
            raise MoekitError(
                f"lora: {type(self.base).__name__} has no matrix that is stacked over experts\n"
                "  expected experts that are a component: moekit ls experts"
            )
        self.adapters = nn.ModuleDict(
            {
                name.replace(".", "-"): Adapter(self.num_experts, spec.rank, weight.shape[2], weight.shape[1])
                for name, weight in matrices.items()
            }
        )
        self.matrices = tuple(matrices)
        self.scale = spec.alpha / spec.rank
        for adapter in self._adapters().values():
            adapter.reset_parameters()

    def _adapters(self) -> dict[str, Adapter]:
        """The adapters, by the names of the matrices in the base."""
        return {name: self.adapters.get_submodule(name.replace(".", "-")) for name in self.matrices}  # type: ignore[misc]

    def init_weights(self, init: Init) -> None:
        """Initialises the base as if it were alone, then the adapters."""
        self.base.init_weights(init)
        for adapter in self._adapters().values():
            init.draw(adapter.w_a_EXD)
            nn.init.zeros_(adapter.w_b_EOX)

    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        """``y_NO``: each row through its own expert.

        Raises:
            MoekitError: the base leaves a matrix out of its products, so that an adapter would have no effect.
        """
        pairs = [(attrgetter(name)(self.base), adapter) for name, adapter in self._adapters().items()]
        adapted = AdaptedGroups(groups, pairs, self.scale, self._drop)
        y_NO: Tensor = self.base(x_ND, adapted)
        if adapted.used < len(pairs):
            raise MoekitError(
                f"lora: {type(self.base).__name__} computes with {adapted.used} of its {len(pairs)} matrices by "
                "groups.linear, so other adapters would have no effect"
            )
        return y_NO

    def _drop(self, x_ND: Tensor) -> Tensor:
        return F.dropout(x_ND, self.spec.dropout, self.training)

    def merged_parameter(self, name: str, read: Read) -> Tensor:
        """``W + alpha / rank · B A``, computed in fp32 at least; other parameters as they are."""
        weight = read(f"base.{name}")
        if name not in self.matrices:
            return weight
        place = f"adapters.{name.replace('.', '-')}"
        dtype = weight.dtype if weight.itemsize > 4 else weight.new_empty(0).float().dtype
        a_EXD, b_EOX = (read(f"{place}.{own}").to(dtype) for own in ("w_a_EXD", "w_b_EOX"))
        return (weight.to(dtype) + self.scale * (b_EOX @ a_EXD)).to(weight.dtype)

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        return f"rank={self.spec.rank}, alpha={self.spec.alpha:g}, dropout={self.spec.dropout:g}"
