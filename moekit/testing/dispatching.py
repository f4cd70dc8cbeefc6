"""How the kit runs a dispatcher: partners, routings, what comes out and with which gradients, and which pairs it kept.

Whatever a dispatcher draws in training, it draws alike in every run here.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from moekit.contracts import Dispatched, ExpertBank
from moekit.routing import ExpertChoice, Routing, TokenChoice
from moekit.spec.kinds import DispatcherSpec, Form
from moekit.testing.case import Case, normal, require, require_finite, seeded
from moekit.testing.probes import claimed_forms
from moekit.testing.reference import NameExperts, TanhExperts, gates_of, naive_sum
from moekit.testing.routings import some_routing, with_gates

TOKENS = 8  # as many as the kit's dispatchers have experts


def spec_of(case: Case) -> DispatcherSpec:
    """The case's options."""
    assert isinstance(case.spec, DispatcherSpec)
    return case.spec


def forms_of(case: Case) -> list[tuple[Form, int]]:
    """The claimed forms; soft both without slots and with two an expert."""
    forms: list[tuple[Form, int]] = [(form, 0) for form in claimed_forms(case)]
    return [*forms, ("soft", 2)] if ("soft", 0) in forms else forms


def experts_of(case: Case) -> TanhExperts:
    """The kit's experts, of the case's sizes."""
    return TanhExperts(case.dims.num_experts, case.dims.dim, case.dims.out_dim)


def even(
    form: Form, case: Case, slots: int, *, dtype: torch.dtype = torch.float64, valid_T: Tensor | None = None
) -> Routing:
    """A routing of eight valid tokens that loads every expert alike (in token choice: two of the eight tokens each)."""
    T, E = TOKENS if valid_T is None else valid_T.shape[0], case.dims.num_experts
    routing = some_routing(form, T, E, dtype=dtype, valid_T=valid_T, slots=slots)
    if isinstance(routing, TokenChoice):
        first_T = torch.arange(T) if valid_T is None else (valid_T.cumsum(0) - 1).clamp(min=0)
        routing = rechosen(routing, (first_T[:, None] + torch.tensor([0, 3])) % E)
    return routing


def padding() -> Tensor:
    """bool: as many valid tokens as there are without padding, and padding between them."""
    return torch.arange(TOKENS // 2 * 3) % 3 != 1


def rechosen(routing: TokenChoice, expert_TK: Tensor) -> TokenChoice:
    """The same routing with other experts chosen, gates being their affinities."""
    return replace(routing, expert_TK=expert_TK, gate_TK=routing.scores_TE.gather(1, expert_TK))


def dispatch(dispatcher: nn.Module, x_TD: Tensor, routing: Routing, experts: ExpertBank) -> Dispatched:
    """Runs it; without padding, nothing in its output may be NaN."""
    __tracebackhide__ = True
    with seeded(5):
        out: Dispatched = dispatcher(x_TD, routing, experts)
    if routing.valid_T is None:
        require_finite(out.y_TO, "y_TO")
    return out


def name(case: Case, x_TD: Tensor, routing: Routing) -> Dispatched:
    """Runs it with experts that answer with their own name."""
    dims = replace(case.dims, out_dim=case.dims.num_experts)
    return dispatch(case.build(dims=dims), x_TD, routing, NameExperts(dims.num_experts))


def kept_TE(case: Case, x_TD: Tensor, routing: Routing) -> Tensor | None:
    """bool ``[T, E]``: the pairs that it computes, gates being above 0; None where it claims to compute all."""
    if spec_of(case).dropless or routing.form == "soft":
        return None
    return name(case, x_TD.double(), routing).y_TO.detach() != 0


def run(case: Case, routing: Routing, *, naive: bool = False, x_TD: Tensor | None = None) -> dict[str, Tensor]:
    """Outputs and gradients (tokens, gates, experts' weights) of the dispatcher; or of the sum over what it keeps."""
    T = routing.scores_TE.shape[0]
    x_TD = normal(T, case.dims.dim, dtype=torch.float64) if x_TD is None else x_TD
    x_TD = x_TD.clone().requires_grad_()
    gates = gates_of(routing).detach().clone().requires_grad_()
    experts, routed = experts_of(case), with_gates(routing, gates)
    if naive:
        y_TO = naive_sum(x_TD, routed, experts, kept_TE=kept_TE(case, x_TD.detach(), routing))
    else:
        y_TO = dispatch(case.build(), x_TD, routed, experts).y_TO
    out = {"y": y_TO}
    torch.autograd.backward((y_TO * normal(*y_TO.shape, seed=6, dtype=y_TO.dtype)).sum())
    named = [("tokens", x_TD), ("gates", gates), *experts.named_parameters()]
    for what, leaf in named:
        require(leaf.grad is not None, found=f"no gradient of {what}", expected="a gradient")
        assert leaf.grad is not None
        out[f"gradient of {what}"] = leaf.grad
    return out


def with_nan_gates(routing: Routing, where_T: Tensor) -> Routing:
    """The routing with NaN for the weights of some tokens, where the form lays them out by token."""
    if isinstance(routing, ExpertChoice):
        return routing
    gates = gates_of(routing).clone()
    gates[where_T] = float("nan")
    return with_gates(routing, gates)
