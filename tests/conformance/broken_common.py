"""Components with one fault in what every kind must do, by the check that must catch it. All are routers."""

from __future__ import annotations

from typing import Any

import torch
from healthy import Pick, PickRouter, component, components
from torch import Tensor, nn

from moekit import Component, LayerDims, Routing, TokenChoice, option
from moekit.contracts import Init


class NoHelp(Pick):
    depth: int = option(1)


class TakesMore(PickRouter):
    def __init__(self, spec: Pick, dims: LayerDims, temperature: float = 1.0) -> None:
        super().__init__(spec, dims)


class TakesAnything(PickRouter):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)


class NotARouter(nn.Module):
    def __init__(self, spec: Pick, dims: LayerDims) -> None:
        super().__init__()


class Uninitialised(PickRouter):
    def __init__(self, spec: Pick, dims: LayerDims) -> None:
        super().__init__(spec, dims)
        self.w_ED = nn.Parameter(torch.empty(dims.num_experts, dims.dim))


class KeepsItsWeights(PickRouter):
    def init_weights(self, init: Init) -> None:
        pass


class IgnoresStd(PickRouter):
    def init_weights(self, init: Init) -> None:
        nn.init.normal_(self.w_ED, std=1.0)


class HiddenTensor(PickRouter):
    def __init__(self, spec: Pick, dims: LayerDims) -> None:
        super().__init__(spec, dims)
        self.offset_E = torch.randn(dims.num_experts)

    def logits(self, x_TD: Tensor) -> Tensor:
        return super().logits(x_TD) + self.offset_E


class NotPickled(PickRouter):
    def __init__(self, spec: Pick, dims: LayerDims) -> None:
        super().__init__(spec, dims)
        self.act = lambda z: z


class LostBuffer(PickRouter):
    two_E: Tensor

    def __init__(self, spec: Pick, dims: LayerDims) -> None:
        super().__init__(spec, dims)
        self.register_buffer("two_E", torch.full((dims.num_experts,), 2.0), persistent=False)

    def logits(self, x_TD: Tensor) -> Tensor:
        return super().logits(x_TD) * self.two_E


class ChangesInput(PickRouter):
    def clean(self, x_TD: Tensor, valid_T: Tensor | None) -> Tensor:
        with torch.no_grad():
            return x_TD.clamp_(max=0.5)


class JitterChangesInput(PickRouter):
    def clean(self, x_TD: Tensor, valid_T: Tensor | None) -> Tensor:
        return x_TD.mul_(1.01) if self.training else x_TD


class NoisyInEval(PickRouter):
    def logits(self, x_TD: Tensor) -> Tensor:
        z_TE = super().logits(x_TD)
        return z_TE + 0.1 * torch.randn_like(z_TE)


class DrawsForNothing(PickRouter):
    def logits(self, x_TD: Tensor) -> Tensor:
        torch.rand(1)
        return super().logits(x_TD)


class Counts(PickRouter):
    def __init__(self, spec: Pick, dims: LayerDims) -> None:
        super().__init__(spec, dims)
        self.calls = 0

    def logits(self, x_TD: Tensor) -> Tensor:
        self.calls += 1
        return super().logits(x_TD)


class AddsUpLoad(PickRouter):
    load_E: Tensor

    def __init__(self, spec: Pick, dims: LayerDims) -> None:
        super().__init__(spec, dims)
        self.register_buffer("load_E", torch.zeros(dims.num_experts))

    def routing(self, routing: TokenChoice) -> Routing:
        self.load_E += routing.load_E()
        return routing


class ReadsMemory(PickRouter):
    def logits(self, x_TD: Tensor) -> Tensor:
        return super().logits(x_TD.as_strided(x_TD.shape, (x_TD.shape[1], 1)))


class BreaksGraph(PickRouter):
    def logits(self, x_TD: Tensor) -> Tensor:
        return super().logits(x_TD) * (1.0 if x_TD.sum().item() > 1e9 else 2.0)


class OtherWhenCompiled(PickRouter):
    def logits(self, x_TD: Tensor) -> Tensor:
        return super().logits(x_TD) * (2.0 if torch.compiler.is_compiling() else 1.0)


class WrongGradient(PickRouter):
    def logits(self, x_TD: Tensor) -> Tensor:
        z_TE = super().logits(x_TD)
        return z_TE + z_TE.detach()


class NoGradient(PickRouter):
    def gate(self, scores_TE: Tensor, biased_TE: Tensor, expert_TK: Tensor) -> Tensor:
        return super().gate(scores_TE.detach(), biased_TE, expert_TK)


class ConstantGate(PickRouter):
    def gate(self, scores_TE: Tensor, biased_TE: Tensor, expert_TK: Tensor) -> Tensor:
        gate_TK = super().gate(scores_TE, biased_TE, expert_TK)
        return gate_TK / gate_TK


class IdleWeight(PickRouter):
    def __init__(self, spec: Pick, dims: LayerDims) -> None:
        super().__init__(spec, dims)
        self.idle = nn.Parameter(torch.ones(3))


BROKEN: dict[str, list[Component]] = {
    "check_description": [
        component(NoHelp, PickRouter),
        component(Pick, PickRouter, summary=" "),
    ],
    "check_constructor": components(Pick, TakesMore, TakesAnything),
    "check_contract": components(Pick, NotARouter),
    "check_ready_when_built": components(Pick, Uninitialised),
    "check_init_weights": components(Pick, KeepsItsWeights, IgnoresStd),
    "check_state_dict": components(Pick, HiddenTensor),
    "check_copies": components(Pick, NotPickled),
    "check_meta_device": components(Pick, LostBuffer),
    "check_input_unchanged": components(Pick, ChangesInput, JitterChangesInput),
    "check_eval_is_repeatable": components(Pick, NoisyInEval, DrawsForNothing),
    "check_forward_keeps_no_state": components(Pick, Counts, AddsUpLoad),
    "check_non_contiguous_input": components(Pick, ReadsMemory),
    "check_compile": components(Pick, BreaksGraph, OtherWhenCompiled),
    "check_gradients": components(Pick, WrongGradient),
    "check_gradient_reaches_weights": components(Pick, NoGradient, ConstantGate, IdleWeight),
}
