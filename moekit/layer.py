"""MoELayer: a router turns tokens into a routing; a dispatcher carries them to the experts and back along it;
balancers look at it and answer with losses and a selection bias. Nothing else happens here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from moekit.contracts import (
    BalanceContext,
    Balancer,
    Dispatcher,
    ExpertBank,
    LayerDims,
    LayerReport,
    Router,
)
from moekit.contracts.layer import UniformGroups
from moekit.registry import build
from moekit.routing import Routing
from moekit.spec.kinds import MoE


class MoELayer(nn.Module):
    """A Mixture-of-Experts layer of any design. Works in any model, with or without a spec.

    Args:
        router: turns tokens into a routing.
        experts: the routed experts.
        dispatcher: carries tokens there and back.
        balancers: by name; the order is the order of their losses.
        shared: experts that every token passes, ungated, added to the output.

    Raises:
        TypeError: a part that is no module, such as its spec.
    """

    def __init__(
        self,
        *,
        router: Router,
        experts: ExpertBank,
        dispatcher: Dispatcher,
        balancers: Mapping[str, Balancer] | None = None,
        shared: ExpertBank | None = None,
    ) -> None:
        super().__init__()
        parts: dict[str, object] = {"router": router, "experts": experts, "dispatcher": dispatcher}
        for name, part in parts.items():
            if not isinstance(part, nn.Module):
                kind = type(part).__name__
                raise TypeError(f"{name}: {kind} is no module; a spec is built by moekit.build(spec, dims)")
        self.router = router
        self.experts = experts
        self.dispatcher = dispatcher
        self.balancers: Mapping[str, Balancer] = cast("Mapping[str, Balancer]", nn.ModuleDict(dict(balancers or {})))
        self.shared = shared
        self.spec: MoE | None = None  # what it was built from, where that was a spec

    @classmethod
    def from_spec(cls, spec: MoE, dim: int, out_dim: int = 0) -> MoELayer:
        """Builds the layer that a spec describes, for tokens of width ``dim``.

        Raises:
            TypeError: ``spec`` is no ``MoE``, but a mapping or a name.
        """
        given: object = spec  # whatever its caller's types say
        if not isinstance(given, MoE):
            kind = type(given).__name__
            raise TypeError(f"{kind} is no spec of a layer; expected MoE(router=..., ...), or load(recipe).model.moe")
        dims = LayerDims(dim=dim, num_experts=spec.experts.count, out_dim=out_dim)
        dispatcher = build(spec.dispatcher, dims)
        held = dims.num_experts if dispatcher.local_experts is None else len(dispatcher.local_experts)
        layer = cls(
            router=build(spec.router, dims),
            experts=build(replace(spec.experts, count=held), replace(dims, num_experts=held)),
            dispatcher=dispatcher,
            balancers={name: build(balancer, dims) for name, balancer in spec.balancers.items()},
            shared=None if spec.shared is None else build(spec.shared, dims),
        )
        layer.spec = spec
        return layer

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> tuple[Tensor, LayerReport]:
        """Runs the layer.

        Args:
            x: ``[..., D]``; with three dimensions, ``[B, S, D]``, the first counts sequences.
            valid: bool ``[...]``, False for padding.

        Returns:
            ``y`` of shape ``[..., O]``, and what the layer saw.

        Raises:
            ValueError: ``valid`` is not bool or not of ``x``'s shape; router and bank differ in their experts' number.
            TypeError: the router returned no ``Routing``.
        """
        if valid is not None and (valid.dtype != torch.bool or valid.shape != x.shape[:-1]):
            found, expected = f"{valid.dtype} {list(valid.shape)}", f"torch.bool {list(x.shape[:-1])}"
            raise ValueError(f"valid is {found}; expected {expected}, True where x holds a token")
        x_TD = x.reshape(-1, x.shape[-1])
        valid_T = None if valid is None else valid.reshape(-1)
        routing = self.router(x_TD, valid_T=valid_T, selection_bias_E=self.selection_bias())
        if not isinstance(routing, Routing):
            raise TypeError(f"{type(self.router).__name__} returned {type(routing).__name__}; expected a Routing")
        here = self.dispatcher.local_experts
        if self.experts.num_experts != (routing.num_experts if here is None else len(here)):
            local = "" if here is None else f", {len(here)} of them here"
            raise ValueError(
                f"the router routes to {routing.num_experts} experts{local}, but the bank has "
                f"{self.experts.num_experts}; give both the same number (LayerDims.num_experts, and count of the "
                "experts' spec)"
            )
        num_sequences = x.shape[0] if x.ndim == 3 else 1
        finish = self.dispatcher.start(x_TD, routing, self.experts, num_sequences=num_sequences)
        shared_TO = None if self.shared is None else run_on_all(self.shared, x_TD)
        out = finish()
        y_TO = out.y_TO if shared_TO is None else out.y_TO + shared_TO
        context = BalanceContext(num_sequences=num_sequences, training=self.training)
        terms = {name: balancer.loss(routing, context) for name, balancer in self.balancers.items()}
        terms["router"] = routing.own_loss
        report = LayerReport(
            routing=routing,
            load_E=routing.load_E(),
            dropped=out.dropped,
            losses={name: term for name, term in terms.items() if term is not None},
            expert_TEO=out.expert_TEO,
        )
        return y_TO.reshape(*x.shape[:-1], y_TO.shape[-1]), report

    def selection_bias(self) -> Tensor | None:
        """The sum of the balancers' biases, or None when no balancer gives one."""
        biases = [b for b in (balancer.selection_bias() for balancer in self.balancers.values()) if b is not None]
        return torch.stack(biases).sum(0) if len(biases) > 1 else (biases[0] if biases else None)

    def step(self, load_E: Tensor, *, progress: float = 0.0) -> None:
        """Moves the balancers' state: once per optimizer step, with the load of the whole global batch.

        Args:
            load_E: int64, tokens sent to each expert.
            progress: the share of the training run that lies behind, for rates that change on the way.
        """
        for balancer in self.balancers.values():
            balancer.step(load_E, progress=progress)


def run_on_all(experts: ExpertBank, x_TD: Tensor) -> Tensor:
    """``y_TO``: the sum of every expert of a bank on every token (dense layers, shared experts)."""
    E, T = experts.num_experts, x_TD.shape[0]
    if E == 1:
        return cast(Tensor, experts(x_TD, UniformGroups(1, T)))
    y_NO: Tensor = experts(x_TD.repeat(E, 1), UniformGroups(E, E * T))
    return y_NO.reshape(E, T, experts.out_dim).sum(0)
