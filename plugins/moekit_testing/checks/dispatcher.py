"""Checks of dispatchers, against the kit's own sum over pairs. T tokens, E experts, N token-expert pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from moekit.routing import TokenChoice, gates_of
from moekit_testing.assertions import require, require_equal
from moekit_testing.case import Case, Check, Omitted, claimed, normal, tensors_in
from moekit_testing.fixtures.dispatcher_runs import (
    TOKENS,
    dispatch,
    dispatch_one_hot,
    even,
    experts_of,
    forms_of,
    kept_TE,
    padding,
    run,
    with_nan_gates,
)
from moekit_testing.fixtures.inputs import Probe, claimed_forms
from moekit_testing.fixtures.reference import TanhExperts, chosen_TE, naive_sum, one_expert
from moekit_testing.fixtures.routings import some_routing, with_gates


def probe(case: Case) -> Probe:
    """The standard input of the common checks, and how to run a module on it."""
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


def checks(case: Case) -> Iterator[Check | Omitted]:
    """The dispatcher checks that a case's claims call for."""
    yield from (check_no_parameters, check_agrees_with_sum, check_no_tokens, check_dispatched_dtype)
    yield from (check_padding_comes_out_zero, check_padding_nan_stays_out)
    if set(claimed_forms(case)) - {"soft"}:
        yield from (check_dropped_is_counted, check_skewed_load)
        yield from claimed(case, "dropless", check_dropless)
    if "soft" in claimed_forms(case):
        yield check_expert_outputs
    if "token_choice" in claimed_forms(case):
        yield from (check_unsent_reaches_nothing, check_unsent_takes_no_place)


def check_no_parameters(case: Case) -> None:
    """Has no parameters of its own."""
    names = [key for key, _ in case.build().named_parameters()]
    require(not names, found=f"parameters {', '.join(names)}", expected="none")


def check_agrees_with_sum(case: Case) -> None:
    """Computes ``y_t = sum of gate · expert(x_t)`` over the pairs of t, with every gradient, in fp64.

    Compared with plain loops over tokens and experts, for every form that it claims, under even and under random load:
    outputs, and gradients of tokens, gates and experts' weights. A dispatcher that drops pairs must sum the ones it
    keeps, with unchanged gates.
    """
    for form, slots in forms_of(case):
        for routing in (
            even(form, case, slots),
            some_routing(form, 7, case.dims.num_experts, K=3, seed=1, slots=slots),
        ):
            found, expected = (run(case, routing, naive=naive) for naive in (False, True))
            for what, value in expected.items():
                require_equal(found[what], value, f"{what} ({form}{', slots' if slots else ''})", tolerance=1e-12)


def check_skewed_load(case: Case) -> None:
    """Handles the most uneven load, every token on the same expert, and sums the pairs it keeps correctly."""
    E = case.dims.num_experts
    if "token_choice" not in claimed_forms(case):
        return
    for e in (0, E - 1):
        base = some_routing("token_choice", 6, E, K=1)
        assert isinstance(base, TokenChoice)
        object.__setattr__(base, "expert_TK", torch.full((6, 1), e))
        x_TD, experts = normal(6, case.dims.dim, dtype=torch.float64), experts_of(case)
        out = dispatch(case.build(), x_TD, base, experts)
        expected = naive_sum(x_TD, base, experts)
        kept = out.y_TO.detach().abs().sum(1) > 0
        require_equal(out.y_TO[kept], expected[kept], f"y with every token on expert {e}", tolerance=1e-12)
        kept_pairs = int(kept.sum()) + int(out.dropped)
        require(kept_pairs == 6, found=f"{int(kept.sum())} outputs and {int(out.dropped)} dropped", expected="6 in all")


def check_dropped_is_counted(case: Case) -> None:
    """Reports as ``dropped`` (0-d int64) the pairs that no expert computed; as ``dropped_tokens``, lost tokens."""
    E = case.dims.num_experts
    for form, _ in forms_of(case):
        if form == "soft":
            continue
        for seed in (0, 1):
            valid_T = torch.arange(11) % 4 != 0
            routing = some_routing(form, 11, E, K=3, seed=seed, valid_T=valid_T)
            routing = with_gates(routing, torch.ones_like(gates_of(routing)))
            out = dispatch_one_hot(case, normal(11, case.dims.dim, dtype=torch.float64), routing)
            require(
                out.dropped.ndim == 0 and out.dropped.dtype == torch.int64,
                found=f"dropped: {out.dropped.dtype} with {out.dropped.ndim} dimensions",
                expected="a 0-d int64 tensor",
            )
            kept_TE = out.y_TO.detach().round().bool()
            chosen = chosen_TE(routing)
            stray = int((kept_TE & ~chosen).sum())
            require(stray == 0, found=f"{stray} outputs of experts that no token chose", expected="chosen pairs only")
            missing = int((chosen & ~kept_TE).sum())
            found = f"dropped = {int(out.dropped)} with {missing} of {int(chosen.sum())} pairs uncomputed ({form})"
            require(int(out.dropped) == missing, found=found, expected=f"{missing}")
            lost = int((chosen.any(1) & ~kept_TE.any(1)).sum())
            found = f"dropped_tokens = {out.dropped_tokens} where {lost} tokens lost all their experts ({form})"
            require(int(out.dropped_tokens or 0) == lost, found=found, expected=f"{lost} (moekit.routing.lost_tokens)")


def check_dropless(case: Case) -> None:
    """Drops nothing under any load, as it claims (``dropless``)."""
    E = case.dims.num_experts
    for form, _ in forms_of(case):
        if form == "token_choice":
            routing = some_routing(form, 24, E, K=1)
            assert isinstance(routing, TokenChoice)
            object.__setattr__(routing, "expert_TK", torch.zeros(24, 1, dtype=torch.int64))
        elif form == "expert_choice":
            routing = some_routing(form, 24, E, K=E)
        else:
            continue
        out = dispatch_one_hot(case, normal(24, case.dims.dim, dtype=torch.float64), routing)
        missing = int((chosen_TE(routing) & (out.y_TO.detach() == 0)).sum())
        require(
            int(out.dropped) == 0 and missing == 0,
            found=f"dropped = {int(out.dropped)}, {missing} pairs uncomputed ({form})",
            expected="0 (or the claim dropless = False)",
        )


def check_no_tokens(case: Case) -> None:
    """Accepts zero tokens and returns ``[0, O]``: in expert-parallel training a rank may have none."""
    for form, slots in forms_of(case):
        routing = some_routing(form, 0, case.dims.num_experts, slots=slots, K=0 if form == "expert_choice" else 2)
        out = dispatch(case.build(), normal(0, case.dims.dim, dtype=torch.float64), routing, experts_of(case))
        shape = tuple(out.y_TO.shape)
        require(shape == (0, case.dims.out_dim), found=f"y_TO {shape} ({form})", expected=f"(0, {case.dims.out_dim})")
        require(int(out.dropped) == 0, found=f"dropped = {int(out.dropped)} without tokens", expected="0")


def check_dispatched_dtype(case: Case) -> None:
    """Returns the tokens' dtype (bf16, fp32, fp64) though gates are fp32, and results close to the sum."""
    for form, slots in forms_of(case):
        for dtype, tolerance in ((torch.bfloat16, 0.1), (torch.float32, 1e-5), (torch.float64, 1e-6)):
            routing = even(form, case, slots, dtype=torch.float32 if dtype != torch.float64 else dtype)
            x_TD = normal(TOKENS, case.dims.dim).to(dtype)
            y_TO = dispatch(case.build(), x_TD, routing, experts_of(case).to(dtype)).y_TO
            require(y_TO.dtype == dtype, found=f"y_TO is {y_TO.dtype} for {dtype} tokens ({form})", expected=str(dtype))
            wide, experts = even(form, case, slots), experts_of(case).to(dtype).double()
            exact = naive_sum(x_TD.double(), wide, experts, kept_TE=kept_TE(case, x_TD, wide))
            require_equal(y_TO, exact, f"y_TO in {dtype} ({form})", tolerance=tolerance)


def check_padding_comes_out_zero(case: Case) -> None:
    """Returns exactly 0 for padding rows, and the sum over their pairs for valid ones."""
    valid_T = padding()
    for form, slots in forms_of(case):
        routing = even(form, case, slots, valid_T=valid_T)
        x_TD, experts = normal(len(valid_T), case.dims.dim, dtype=torch.float64), experts_of(case)
        y_TO = dispatch(case.build(), x_TD, routing, experts).y_TO
        require_equal(y_TO[~valid_T], torch.zeros_like(y_TO[~valid_T]), f"y of padding rows ({form})")
        expected = naive_sum(x_TD, routing, experts, kept_TE=kept_TE(case, x_TD, routing))
        require_equal(y_TO[valid_T], expected[valid_T], f"y of valid rows ({form})", tolerance=1e-12)


def check_padding_nan_stays_out(case: Case) -> None:
    """Keeps NaN in padding rows (tokens and gates) out of the output and of every gradient."""
    valid_T = padding()
    for form, slots in forms_of(case):
        routing = even(form, case, slots, valid_T=valid_T)
        x_TD = normal(len(valid_T), case.dims.dim, dtype=torch.float64)
        clean = run(case, routing, x_TD=x_TD)
        nan_TD = x_TD.masked_fill(~valid_T[:, None], float("nan"))
        found = run(case, with_nan_gates(routing, ~valid_T), x_TD=nan_TD)
        for what, value in clean.items():
            per_token = value.shape[:1] == valid_T.shape
            if what == "gradient of gates" and not per_token:
                continue
            a, b = (found[what][valid_T], value[valid_T]) if per_token else (found[what], value)
            require_equal(a, b, f"{what} with NaN in padding ({form})", tolerance=1e-12)


def check_expert_outputs(case: Case) -> None:
    """Under soft routing without slots, reports each expert's own output correctly, if it reports it.

    The competitive losses of 1991 are computed from these.
    """
    routing = some_routing("soft", 5, case.dims.num_experts)
    x_TD, experts = normal(5, case.dims.dim, dtype=torch.float64), experts_of(case)
    expert_TEO = dispatch(case.build(), x_TD, routing, experts).expert_TEO
    if expert_TEO is None:
        return
    expected = torch.stack(
        [torch.stack([one_expert(experts, e, x_D) for e in range(experts.num_experts)]) for x_D in x_TD]
    )
    require_equal(expert_TEO, expected, "expert_TEO", tolerance=1e-12)


def check_unsent_reaches_nothing(case: Case) -> None:
    """Ignores choices that the router does not send (``sent_TK`` False): in outputs, gradients and ``dropped``.

    Examples are a second expert skipped at random, or one below a threshold. Their gates may be anything, NaN here. A
    token without any choice sent has output 0. ``routing.pairs()`` gives such pairs the expert E.
    """
    routing = _partly_sent(case)
    found, expected = (run(case, routing, naive=naive) for naive in (False, True))
    for what, value in expected.items():
        require_equal(found[what], value, f"{what} with choices that are not sent", tolerance=1e-12)
    kept = kept_TE(case, normal(TOKENS, case.dims.dim), routing)
    missing = 0 if kept is None else int((chosen_TE(routing) & ~kept).sum())
    dropped = _num_dropped(case, routing)
    require(
        dropped == missing,
        found=f"dropped = {dropped}",
        expected=f"{missing}: choices that the router does not send are not drops",
    )


def check_unsent_takes_no_place(case: Case) -> None:
    """Gives the same result for unsent choices of any expert: they take no capacity from other pairs."""
    routing = _partly_sent(case)
    assert routing.sent_TK is not None
    busy = int(routing.expert_TK[-1, 1])  # the expert of the last pair that is sent
    others_TK = ~routing.sent_TK & (routing.expert_TK != busy).all(1, keepdim=True)  # experts of a token are distinct
    others_TK &= ~(others_TK.cumsum(1) > 1)
    crowded = replace(routing, expert_TK=routing.expert_TK.masked_fill(others_TK, busy))
    found, other = run(case, routing), run(case, crowded)
    for what, value in found.items():
        require_equal(other[what], value, f"{what} when choices not sent name one expert", tolerance=1e-12)
    dropped, others_dropped = _num_dropped(case, routing), _num_dropped(case, crowded)
    require(others_dropped == dropped, found=f"dropped = {others_dropped}", expected=f"{dropped}, as before")


def _partly_sent(case: Case) -> TokenChoice:
    """Even load; of each token all, one or none of the choices are sent. Gates of unsent choices are NaN."""
    base = even("token_choice", case, 0)
    assert isinstance(base, TokenChoice)
    sent_TK = torch.tensor([[True, False], [True, True], [False, False], [False, True]]).repeat(TOKENS // 4, 1)
    return replace(base, sent_TK=sent_TK, gate_TK=base.gate_TK.masked_fill(~sent_TK, float("nan")))


def _num_dropped(case: Case, routing: TokenChoice) -> int:
    x_TD = normal(TOKENS, case.dims.dim, dtype=torch.float64)
    return int(dispatch(case.build(), x_TD, routing, experts_of(case)).dropped)
