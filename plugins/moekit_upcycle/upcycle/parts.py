"""The parts of a mixture's layers: which tensor of the dense model each is made of, and whether that is exact."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moekit.checkpoints.reading import Handle
from moekit.contracts import LayerDims, Router
from moekit.errors import MoekitError
from moekit.registry import build
from moekit.routing import TokenChoice
from moekit.seeds import seed_of, seed_torch
from moekit.spec.kinds import MoE
from moekit_upcycle.upcycle import Upcycle
from moekit_upcycle.upcycle.experts import expert_of

FFN = re.compile(r"(.*\.ffn)\.(experts|router|balancers)\.(.+)")
PROBE = 64  # tokens on which a router is tried


class Parts:
    """The tensors of a mixture's layers, from those of dense ones.

    Args:
        moe: the mixture.
        dim: D, width of the tokens.
        how: how experts are made.

    Raises:
        MoekitError: the mixture is not one that computes what the dense layer does.
    """

    def __init__(self, moe: MoE, dim: int, how: Upcycle) -> None:
        self.moe, self.how = moe, how
        self.dims = LayerDims(dim=dim, num_experts=moe.experts.count)
        if moe.shared is not None:
            raise MoekitError(
                "model.moe.shared: shared experts would add to what the dense layer computes\n  expected null"
            )
        if moe.experts.count % how.shards:
            raise MoekitError(
                f"{moe.experts.count} experts cannot be {how.shards} shards of each copy: choose a multiple"
            )
        self.gate_sum = self._gate_sum()

    def router(self, layer: str) -> Router:
        """A layer's router: fresh, with one row for each copy of the net, repeated for its shards."""
        with torch.random.fork_rng(devices=[]):
            seed_torch(seed_of(self.how.seed, f"{layer}.router"))
            router: Router = build(self.moe.router, self.dims)
        copies = self.dims.num_experts // self.how.shards
        with torch.no_grad():
            for parameter in router.parameters():
                if parameter.shape[:1] == (self.dims.num_experts,):
                    parameter.copy_(parameter[:copies].repeat_interleave(self.how.shards, dim=0))
        return router.eval()

    def _gate_sum(self) -> float:
        """What the gates of every token add up to, tried on random tokens; the choice must be of whole copies."""
        x_TD = torch.randn(PROBE, self.dims.dim, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            routing = self.router("a layer")(x_TD)
        if not isinstance(routing, TokenChoice):
            raise MoekitError("model.moe.router: experts are made for routers by which each token chooses its experts")
        sums_T = routing.gate_TK.sum(-1)
        if float(sums_T.max() - sums_T.min()) > 1e-5:
            raise MoekitError(
                "model.moe.router: its gates do not add up to one number, so the mixture would compute something else\n"
                "  expected renormalize=true, or score_over=chosen"
            )
        copies_TK = (routing.expert_TK // self.how.shards).sort(-1).values
        whole = copies_TK.shape[-1] % self.how.shards == 0
        if not whole or not torch.equal(
            copies_TK[:, :: self.how.shards], copies_TK[:, self.how.shards - 1 :: self.how.shards]
        ):
            raise MoekitError(
                f"model.moe.router: a token must choose all {self.how.shards} shards of a copy\n"
                f"  expected a top_k that is a multiple of {self.how.shards}, without groups"
            )
        return float(sums_T.mean())

    def source(self, name: str, shape: tuple[int, ...], dense: Mapping[str, Any]) -> str:
        """The dense model's tensor that one of the mixture is made of; "" for fresh ones.

        Raises:
            MoekitError: there is none, or of another shape.
        """
        match = FFN.fullmatch(name)
        if match is not None and match[2] != "experts":
            return ""
        source = name if match is None else f"{match[1]}.{match[3]}"
        if source not in dense:
            raise MoekitError(
                f"the dense model has no '{source}' for the mixture's '{name}'\n  expected the same model but for moe"
            )
        held = tuple(dense[source].shape)
        if match is not None:
            kept = [1 if size == other else self.how.shards for size, other in zip(held[1:], shape[1:], strict=True)]
            held = (shape[0], *(size // divisor for size, divisor in zip(held[1:], kept, strict=True)))
        if held != shape:
            raise MoekitError(
                f"'{source}' {list(dense[source].shape)} cannot make '{name}' {list(shape)}: check hidden"
            )
        return source

    def fresh(self, layer: str, part: str, name: str) -> Tensor:
        """A tensor of a layer's router or balancers."""
        if part == "router":
            fresh: nn.Module = self.router(layer)
        else:
            balancer, _, name = name.partition(".")
            fresh = build(self.moe.balancers[balancer], self.dims)
        tensor: Tensor = fresh.state_dict()[name]
        return tensor.float()

    def expert(self, layer: str, expert: int, name: str, source: str, models: Sequence[Mapping[str, Handle]]) -> Tensor:
        """One expert's parameter, from the model whose turn it is."""
        net = models[expert // self.how.shards % len(models)][source].whole()[0]
        return expert_of(self.how, layer, expert, name, net, self.gate_sum)
