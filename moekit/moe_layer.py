"""MoELayer: calls router, dispatcher, experts and balancers, checks what they return, and returns a report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from moekit.contracts import BalanceContext, Balancer, Dispatcher, ExpertBank, LayerDims, LayerReport, Router
from moekit.contracts.layer import UniformGroups
from moekit.contracts.returned import check_bias, check_dispatched, check_loss_term, check_routing, check_routing_values
from moekit.errors import MoekitError
from moekit.registry import build
from moekit.routing import LossTerm, Routing, TokenChoice
from moekit.spec.dumping import text_of
from moekit.spec.fields import ConflictError, Spec
from moekit.spec.kinds import BalancerSpec, DispatcherSpec, MoE, RouterSpec, balancer_conflicts


class MoELayer(nn.Module):
    """A Mixture-of-Experts layer of any design. Works in any PyTorch model, with or without a spec.

    Args:
        router: decides which experts process which tokens.
        experts: the routed experts.
        dispatcher: sends tokens to the experts and combines the outputs.
        balancers: add losses and a selection bias; by name, in the order in which losses are reported.
        shared: shared experts, whose ungated outputs are added for every token.
        gate_on: what a gate multiplies: the ``output`` of its expert, or the ``input``, with one expert a token.

    Attributes:
        check_values: whether ``forward`` also checks the values of a routing (indices in range, no pair twice, no NaN
            in a gate), which reads the device. Initially, whether ``MOEKIT_CHECK=1`` is set; ``LitMoE`` sets it for the
            first step of a run.

    Raises:
        TypeError: a component is not a module, but for example its spec.
        ValueError: a balancer is named ``router``.
        ConflictError: a balancer does not fit the router, by the specs that both have as their attribute ``spec``.
    """

    def __init__(
        self,
        *,
        router: Router,
        experts: ExpertBank,
        dispatcher: Dispatcher,
        balancers: Mapping[str, Balancer] | None = None,
        shared: ExpertBank | None = None,
        gate_on: Literal["output", "input"] = "output",
    ) -> None:
        super().__init__()
        components: dict[str, object] = {"router": router, "experts": experts, "dispatcher": dispatcher}
        for name, component in components.items():
            if not isinstance(component, nn.Module):
                kind = type(component).__name__
                raise TypeError(f"{name}: {kind} is not a module; build a spec with moekit.build(spec, dims)")
        if "router" in (balancers or {}):
            raise ValueError(
                "a balancer cannot be named 'router': the report has the router's own loss under that name"
            )
        self.router = router
        self.experts = experts
        self.dispatcher = dispatcher
        self.balancers: Mapping[str, Balancer] = cast("Mapping[str, Balancer]", nn.ModuleDict(dict(balancers or {})))
        self.shared = shared
        self.gate_on = gate_on
        self.check_values = os.environ.get("MOEKIT_CHECK", "") not in ("", "0")
        if conflicts := self._conflicts():
            raise ConflictError(*conflicts)
        self.spec: MoE | None = None  # the spec that it was built from, if any

    @classmethod
    def from_spec(cls, spec: MoE, dim: int, out_dim: int = 0) -> MoELayer:
        """Builds the layer that a spec describes, for tokens of width ``dim``.

        Raises:
            TypeError: ``spec`` is not an ``MoE``, but for example a mapping or a name.
            MoekitError: ranks are to share experts that are not stacked weights.
        """
        given: object = spec  # users without a type checker may pass anything
        if not isinstance(given, MoE):
            kind = type(given).__name__
            raise TypeError(f"{kind} is not a layer's spec; expected MoE(router=..., ...) or load(recipe).model.moe")
        dims = LayerDims(dim=dim, num_experts=spec.experts.count, out_dim=out_dim)
        dispatcher = build(spec.dispatcher, dims)
        held = dims.num_experts if dispatcher.local_experts is None else len(dispatcher.local_experts)
        if held < dims.num_experts:
            with torch.device("meta"):
                check_stacked(build(spec.experts, dims))
        layer = cls(
            router=build(spec.router, dims),
            experts=build(replace(spec.experts, count=held), replace(dims, num_experts=held)),
            dispatcher=dispatcher,
            balancers={name: build(balancer, dims) for name, balancer in spec.balancers.items()},
            shared=None if spec.shared is None else build(spec.shared, dims),
            gate_on=spec.gate_on,
        )
        layer.spec = spec
        return layer

    def extra_repr(self) -> str:
        """Its parts with the options that are not at their default, as ``print(layer)`` shows them."""
        of = self if self.spec is None else self.spec
        parts = {"router": of.router, "experts": of.experts, "dispatcher": of.dispatcher, "shared": of.shared}
        named = {n: getattr(part, "spec", part) for n, part in {**parts, **dict(of.balancers)}.items()}
        return "\n".join(f"{name}: {text_of(spec)}" for name, spec in named.items() if isinstance(spec, Spec))

    def forward(
        self, x: Tensor, *, valid: Tensor | None = None, tokens: Tensor | None = None
    ) -> tuple[Tensor, LayerReport]:
        """Runs the layer.

        Args:
            x: tokens ``[..., D]``. Three dimensions are read as ``[B, S, D]``, anything else as one sequence.
            valid: bool ``[...]``, False for padding.
            tokens: int64 ``[...]``, the ids of the tokens, for a router that reads them.

        Returns:
            ``y`` of shape ``[..., O]``, and the layer's report, under ``torch.inference_mode`` without losses.

        Raises:
            ValueError: ``valid`` is not bool, ``tokens`` not int64, or either not of ``x``'s shape; router and experts
                differ in number; ``gate_on`` is ``input``, and tokens have several experts.
            PluginError: what a component returned has another shape or dtype than its interface says; with
                ``check_values``, or values that it must not have.
        """
        _check_like("valid", valid, torch.bool, x, "True where x holds a token")
        _check_like("tokens", tokens, torch.int64, x, "the ids of the tokens")
        x_TD = x.reshape(-1, x.shape[-1])
        valid_T = None if valid is None else valid.reshape(-1)
        here = self.dispatcher.local_experts
        bias_E = self.selection_bias()
        token_T = None if tokens is None else tokens.reshape(-1)
        routing = self.router(x_TD, valid_T=valid_T, selection_bias_E=bias_E, token_T=token_T)
        check_routing(self.router, routing, x_TD, valid_T)
        if self.check_values:
            check_routing_values(self.router, routing, x_TD)
        if self.experts.num_experts != (routing.num_experts if here is None else len(here)):
            local = "" if here is None else f", {len(here)} of them here"
            raise ValueError(
                f"the router routes to {routing.num_experts} experts{local}, but the experts module "
                f"has {self.experts.num_experts}; give both the same number (LayerDims.num_experts, and count of the "
                "experts' spec)"
            )
        num_sequences = x.shape[0] if x.ndim == 3 else 1
        sent_TD, sent = (x_TD, routing) if self.gate_on == "output" else _gated_input(x_TD, routing)
        finish = self.dispatcher.start(sent_TD, sent, self.experts, num_sequences=num_sequences)
        shared_TO = None if self.shared is None else run_on_all(self.shared, x_TD)
        out = finish()
        check_dispatched(self.dispatcher, out, x_TD, routing.num_experts, self.experts.out_dim)
        y_TO = out.y_TO if shared_TO is None else out.y_TO + shared_TO
        terms: dict[str, LossTerm | None] = {}
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():  # dynamo cannot trace the second
            context = BalanceContext(num_sequences=num_sequences, training=self.training)
            terms = {name: balancer.loss(routing, context) for name, balancer in self.balancers.items()}
            for name, term in terms.items():
                check_loss_term(self.balancers[name], term)
            terms["router"] = routing.own_loss
        report = LayerReport(
            routing=routing,
            dropped=out.dropped,
            dropped_tokens=out.dropped_tokens,
            losses={name: term for name, term in terms.items() if term is not None},
            expert_TEO=out.expert_TEO,
        )
        return y_TO.reshape(*x.shape[:-1], y_TO.shape[-1]), report

    def selection_bias(self) -> Tensor | None:
        """The sum of the balancers' selection biases, or None if none has one.

        Raises:
            PluginError: a bias is not a float tensor ``[E]``.
        """
        biases = []
        for balancer in self.balancers.values():
            if (bias_E := balancer.selection_bias()) is not None:
                if self.dispatcher.local_experts is None:  # else E is not known here
                    check_bias(balancer, bias_E, self.experts.num_experts)
                biases.append(bias_E)
        return torch.stack(biases).sum(0) if len(biases) > 1 else (biases[0] if biases else None)

    def _conflicts(self) -> list[str]:
        """Conflicts of the router's spec with the other parts', where they have one and all experts are here."""
        router = getattr(self.router, "spec", None)
        specs = {name: getattr(balancer, "spec", None) for name, balancer in self.balancers.items()}
        known = {name: spec for name, spec in specs.items() if isinstance(spec, BalancerSpec)}
        if not isinstance(router, RouterSpec) or self.dispatcher.local_experts is not None:
            return []
        dispatcher = getattr(self.dispatcher, "spec", None)
        found = list(dispatcher.check_router(router)) if isinstance(dispatcher, DispatcherSpec) else []
        return [*found, *balancer_conflicts(router, self.experts.num_experts, known)]

    def step(self, load_E: Tensor, *, progress: float = 0.0) -> None:
        """Updates the balancers' state. To be called once per optimizer step; see ``Balancer.step``."""
        for balancer in self.balancers.values():
            balancer.step(load_E, progress=progress)


def _gated_input(x_TD: Tensor, routing: Routing) -> tuple[Tensor, Routing]:
    """Tokens multiplied by the gate of their one expert, and the routing with gates of 1."""
    if not isinstance(routing, TokenChoice) or routing.expert_TK.shape[1] != 1:
        raise ValueError(
            "gate_on='input' needs one expert for each token, and the router lists several or chooses tokens"
        )
    gated_TD = (x_TD * routing.gate_TK).to(x_TD.dtype)
    return gated_TD, replace(routing, gate_TK=torch.ones_like(routing.gate_TK))


def _check_like(name: str, given: Tensor | None, dtype: torch.dtype, x: Tensor, meaning: str) -> None:
    if given is not None and (given.dtype != dtype or given.shape != x.shape[:-1]):
        found, expected = f"{given.dtype} {list(given.shape)}", f"{dtype} {list(x.shape[:-1])}"
        raise ValueError(f"{name} is {found}; expected {expected}, {meaning}")


def run_on_all(experts: ExpertBank, x_TD: Tensor) -> Tensor:
    """``y_TO``: the sum over all experts of a module, on every token (dense layers, shared experts)."""
    E, T = experts.num_experts, x_TD.shape[0]
    if E == 1:
        return cast(Tensor, experts(x_TD, UniformGroups(1, T)))
    y_NO: Tensor = experts(x_TD.repeat(E, 1), UniformGroups(E, E * T))
    return y_NO.reshape(E, T, experts.out_dim).sum(0)


def check_stacked(experts: ExpertBank) -> None:
    """Checks that ranks can share the experts of a module: a part of it is the same module with fewer experts.

    Raises:
        MoekitError: a parameter is not stacked over experts, as where experts differ.
    """
    for name, tensor in experts.named_parameters():
        if tensor.shape[:1] != (experts.num_experts,):
            raise MoekitError(
                f"ranks cannot share the {experts.num_experts} experts of {type(experts).__name__}: '{name}' is "
                f"{list(tensor.shape)}, not stacked over experts\n"
                f"  expected ep=1, or weights of shape [{experts.num_experts}, ...] alone"
            )
