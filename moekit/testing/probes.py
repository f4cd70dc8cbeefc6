"""Probes: for each kind one standard input, and how to run a built module on it. What the common checks work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moekit.contracts import BalanceContext, Balancer, Batch, LayerReport, Model, ModelOutput, Source
from moekit.contracts.layer import UniformGroups
from moekit.routing import Routing, Soft
from moekit.spec.kinds import Form
from moekit.testing.case import ATTENTION_DIM, Case, normal, tensors_in
from moekit.testing.reference import TanhExperts
from moekit.testing.routings import rescored, some_routing, with_gates


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A standard input and how to run a module on it.

    Args:
        inputs: tensors by name; those of a float dtype get gradients where a check asks.
        run: ``run(module, inputs)``: everything that comes out, by name.
        fullgraph: whether the module must compile as one graph.
    """

    inputs: Mapping[str, Tensor]
    run: Callable[[nn.Module, Mapping[str, Tensor]], dict[str, Tensor]]
    fullgraph: bool = True

    def cast(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The inputs, those of a float dtype in ``dtype``."""
        return {n: (x.to(dtype) if x.is_floating_point() else x).clone() for n, x in self.inputs.items()}


def probe_for(case: Case) -> Probe:
    """The probe of a case's kind."""
    return _PROBES[case.kind](case)


def route(module: nn.Module, x_TD: Tensor, valid_T: Tensor | None = None, bias_E: Tensor | None = None) -> Routing:
    """Calls a router."""
    routing: Routing = module(x_TD, valid_T=valid_T, selection_bias_E=bias_E)
    return routing


def claimed_forms(case: Case) -> list[Form]:
    """The forms of routing that a dispatcher or balancer claims to take, sorted."""
    return sorted(case.spec.forms)  # type: ignore[attr-defined]


def _router(case: Case) -> Probe:
    def run(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        routing = route(module, inputs["x_TD"])
        own = {} if routing.own_loss is None else {"own_loss": routing.own_loss.value}
        return tensors_in(routing) | own

    return Probe(inputs={"x_TD": normal(5, case.dims.dim)}, run=run)


def _expert(case: Case) -> Probe:
    E = case.dims.num_experts

    def run(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"y_NO": module(inputs["x_ND"], UniformGroups(E, inputs["x_ND"].shape[0]))}

    return Probe(inputs={"x_ND": normal(3 * E, case.dims.dim)}, run=run)


def _dispatcher(case: Case) -> Probe:
    form, dims = claimed_forms(case)[-1], case.dims
    template = some_routing(form, 7, dims.num_experts)
    gates = weights = {"token_choice": "gate_TK", "expert_choice": "gate_EC", "soft": "combine_TEP"}[form]
    gates_value: Tensor = getattr(template, weights)

    experts = {
        dtype: TanhExperts(dims.num_experts, dims.dim, dims.out_dim, dtype=dtype)
        for dtype in (torch.float32, torch.float64)
    }

    def run(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x_TD = inputs["x_TD"]
        return tensors_in(module(x_TD, with_gates(template, inputs[gates]), experts[x_TD.dtype]))

    return Probe(inputs={"x_TD": normal(7, dims.dim), gates: gates_value.float()}, run=run, fullgraph=False)


def _balancer(case: Case) -> Probe:
    E, form = case.dims.num_experts, claimed_forms(case)[-1]
    template = some_routing(form, 6, E, dtype=torch.float32)

    def run(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert isinstance(module, Balancer)
        routing = rescored(template, inputs["logits_TE"])
        term, bias_E = module.loss(routing, BalanceContext(num_sequences=2, training=True)), module.selection_bias()
        out = {} if term is None else {"loss": term.value}
        return out if bias_E is None else {**out, "selection_bias_E": bias_E}

    return Probe(inputs={"logits_TE": normal(6, E)}, run=run)


def _attention(case: Case) -> Probe:
    def run(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"y_BSD": module(inputs["x_BSD"])}

    return Probe(inputs={"x_BSD": normal(2, 5, ATTENTION_DIM)}, run=run)


def _model(case: Case) -> Probe:
    def run(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert isinstance(module, Model)
        tokens = inputs["inputs"]
        source = Source(inputs["source"]) if "source" in inputs else None
        output = module.on(Batch(tokens, tokens, source=source))
        return {"y": output.y} | {f"future[{k}]": y for k, y in enumerate(output.future)}

    inputs, source = model_inputs(case), model_source(case)
    named = {"inputs": inputs} if source is None else {"inputs": inputs, "source": source.tokens}
    return Probe(inputs=named, run=run, fullgraph=False)


def model_inputs(case: Case, *, seed: int = 0) -> Tensor:
    """Tokens ``[2, 9]`` below the model's vocabulary (of a target, where it takes pairs), or 9 cases of its width."""
    if case.spec.takes in ("tokens", "pairs"):  # type: ignore[attr-defined]
        draw = torch.Generator().manual_seed(seed)
        return torch.randint(case.spec.vocab, (2, 9), generator=draw)  # type: ignore[attr-defined]
    return normal(9, case.spec.inputs, seed=seed)  # type: ignore[attr-defined]


def model_source(case: Case, *, seed: int = 1) -> Source | None:
    """What the targets are made from, ``[2, 7]`` tokens of which all count, for models that take pairs; else None."""
    if case.spec.takes != "pairs":  # type: ignore[attr-defined]
        return None
    draw = torch.Generator().manual_seed(seed)
    tokens_BS = torch.randint(case.spec.vocab, (2, 7), generator=draw)  # type: ignore[attr-defined]
    return Source(tokens_BS, torch.ones_like(tokens_BS, dtype=torch.bool))


def _objective(case: Case) -> Probe:
    def run(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        output, batch = objective_inputs(case, inputs["y"])
        loss = module(output, batch)
        return {"total": loss.total, "count": loss.count}

    soft = "mixture" in case.spec.takes or "prediction" in case.spec.takes  # type: ignore[attr-defined]
    y = normal(6, 1) if soft else normal(2, 4, 11)
    return Probe(inputs={"y": y}, run=run, fullgraph=False)


def objective_inputs(case: Case, y: Tensor, *, valid: Tensor | None = None) -> tuple[ModelOutput, Batch]:
    """A model's output around ``y``, of a form that the objective takes, and the batch that belongs to it.

    Under ``mixture`` ``y`` is the output of the first of three experts, and what is blended with the others' comes out.
    """
    takes = case.spec.takes  # type: ignore[attr-defined]
    if "next_token" in takes:
        tokens_BS = torch.arange(y.shape[0] * y.shape[1]).reshape(y.shape[:2]) * 7 % y.shape[2]
        num_bytes = torch.tensor(tokens_BS.numel() if valid is None else int(valid.sum()))
        return ModelOutput(y=y), Batch(tokens_BS, tokens_BS.roll(-1, 1), valid, num_bytes)
    T = y.shape[0]
    targets_TO = (torch.arange(T, device=y.device) % 2).to(y.dtype)[:, None]
    inputs = normal(T, 2, seed=3, dtype=y.dtype)
    if "mixture" not in takes:
        return ModelOutput(y=y), Batch(inputs, targets_TO, valid)
    logits_TE = normal(T, 3, seed=4, dtype=y.dtype)
    scores_TE = logits_TE.softmax(1)
    expert_TEO = torch.stack([y, y * 0 + 0.2, y * 0 + 0.7], dim=1)
    routing = Soft(logits_TE=logits_TE, scores_TE=scores_TE, valid_T=valid, combine_TEP=scores_TE[:, :, None])
    zero = torch.zeros((), dtype=torch.int64)
    report = LayerReport(routing=routing, load_E=routing.load_E(), dropped=zero, expert_TEO=expert_TEO)
    return ModelOutput(y=(scores_TE[:, :, None] * expert_TEO).sum(1), reports={"moe": report}), Batch(
        inputs, targets_TO, valid
    )


_PROBES: dict[str, Callable[[Case], Probe]] = {
    "router": _router,
    "expert": _expert,
    "dispatcher": _dispatcher,
    "balancer": _balancer,
    "attention": _attention,
    "model": _model,
    "objective": _objective,
}
