"""Checks of routers. T tokens, E experts, K experts per token, C tokens per expert, P slots per expert."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from moekit.routing import ExpertChoice, Routing, TokenChoice
from moekit.spec.kinds import RouterSpec
from moekit.testing.case import (
    Case,
    Check,
    normal,
    require,
    require_equal,
    require_finite,
    tensors_in,
)
from moekit.testing.probes import route
from moekit.testing.reference import chosen_TE, gates_of, weights_TX


def checks(case: Case) -> Iterator[Check]:
    """The checks of a router."""
    yield from (check_shapes, check_any_number_of_tokens, check_fp32_arithmetic, check_device)
    yield from (check_choices_distinct, check_load_counts, check_padding, check_padding_nan)
    yield from (check_extreme_logits, check_nan_stays_with_its_token)


def check_shapes(case: Case) -> None:
    """Gives scores and logits ``[T, E]`` and a choice with gates in the shapes and dtypes of its form."""
    E = case.dims.num_experts
    T = 8 * E + 1
    routing = route(case.build(), normal(T, case.dims.dim))
    for name in ("logits_TE", "scores_TE"):
        shape = tuple(getattr(routing, name).shape)
        require(shape == (T, E), found=f"{name} of shape {shape}", expected=f"{(T, E)}")
    if isinstance(routing, TokenChoice | ExpertChoice):
        token_choice = isinstance(routing, TokenChoice)
        index = routing.expert_TK if isinstance(routing, TokenChoice) else routing.token_EC
        gates = gates_of(routing)
        first = T if token_choice else E
        require(
            index.dtype == torch.int64 and index.ndim == 2 and index.shape[0] == first and index.shape == gates.shape,
            found=f"indices {index.dtype} {tuple(index.shape)}, gates {tuple(gates.shape)}",
            expected=f"int64 indices and gates, both [{first}, {'K' if token_choice else 'C'}]",
        )
        top = E if token_choice else T
        inside = bool(((index >= 0) & (index < top)).all())
        require(inside, found=f"indices from {index.min()} to {index.max()}", expected=f"0 to {top - 1}")
    else:
        shape = tuple(gates_of(routing).shape)
        require(len(shape) == 3 and shape[:2] == (T, E), found=f"combine_TEP {shape}", expected=f"({T}, {E}, P)")


def check_any_number_of_tokens(case: Case) -> None:
    """Takes any number of tokens: none, one, and numbers that nothing divides."""
    router = case.build().eval()
    for T in (0, 1, 13):
        routing = route(router, normal(T, case.dims.dim))
        require(
            routing.scores_TE.shape == (T, case.dims.num_experts),
            found=f"scores_TE {tuple(routing.scores_TE.shape)} for {T} tokens",
            expected=f"({T}, {case.dims.num_experts})",
        )
        require(weights_TX(routing).shape[0] == T, found="gates of other tokens", expected=f"gates of {T} tokens")
        require_finite(gates_of(routing), f"gates for {T} tokens")


def check_fp32_arithmetic(case: Case) -> None:
    """Computes in fp32 at least: under autocast, for bf16 input and with bf16 weights.

    A softmax in bf16 has three digits: near ties then fall to the wrong expert, and training becomes unstable.
    """
    x_TD = normal(9, case.dims.dim).bfloat16()
    router = case.build().bfloat16().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = route(router.float(), x_TD.float())
    in_bf16 = route(router.bfloat16(), x_TD)
    in_fp32 = tensors_in(route(router.float(), x_TD.float()))
    for found, how in ((under_autocast, "under autocast"), (in_bf16, "for bf16 input and weights")):
        for name, value in tensors_in(found).items():
            if value.is_floating_point():
                require(value.dtype == torch.float32, found=f"{name} is {value.dtype} {how}", expected="float32")
            require_equal(value, in_fp32[name], f"{name} {how}", tolerance=1e-5)


def check_device(case: Case) -> None:
    """Answers on its input's device, making no tensor elsewhere (tried on the meta device, and on CUDA if there)."""
    for device in ["meta", *(["cuda"] if torch.cuda.is_available() else [])]:
        router = case.build().to(device)
        valid_T = torch.ones(5, dtype=torch.bool, device=device)
        bias_E = torch.zeros(case.dims.num_experts, device=device) if _spec(case).takes_bias else None
        routing = route(router, torch.zeros(5, case.dims.dim, device=device), valid_T, bias_E)
        for name, value in tensors_in(routing).items():
            require(value.device.type == device, found=f"{name} on {value.device}", expected=f"{device}")


def check_choices_distinct(case: Case) -> None:
    """Never chooses the same pair of token and expert twice, ties included; a pair counted twice skews the load."""
    router = case.build().eval()
    for x_TD, what in ((normal(11, case.dims.dim), "random tokens"), (torch.zeros(11, case.dims.dim), "all ties")):
        routing = route(router, x_TD)
        if isinstance(routing, TokenChoice | ExpertChoice):
            pairs = routing.pairs()
            all_pairs = list(zip(pairs.token_N.tolist(), pairs.expert_N.tolist(), strict=True))
            twice = sorted({p for p in all_pairs if all_pairs.count(p) > 1 and p[1] < routing.num_experts})
            require(not twice, found=f"(token, expert) {twice[:1]} chosen twice for {what}", expected="distinct pairs")


def check_load_counts(case: Case) -> None:
    """Reports as load exactly the pairs of valid tokens that its routing holds, as int64."""
    valid_T = torch.arange(12) % 3 != 0
    routing = route(case.build(), normal(12, case.dims.dim), valid_T)
    load_E, counted_E = routing.load_E(), chosen_TE(routing).sum(0)
    require(load_E.dtype == torch.int64, found=f"load_E is {load_E.dtype}", expected="int64")
    require_equal(load_E, counted_E, "load_E")


def check_padding(case: Case) -> None:
    """Treats padding as absent: no load and no gradient for it, and valid tokens go where they go without it.

    ``valid_T`` is False for padding, anywhere among the tokens.
    """
    router = case.build().eval()
    valid_T = torch.tensor([True, False, True, True, False, True, False, True, False, False, True])
    x_TD = normal(11, case.dims.dim).requires_grad_()
    padded, alone = route(router, x_TD, valid_T), route(router, x_TD[valid_T])
    require_equal(weights_TX(padded)[valid_T], weights_TX(alone), "gates of valid tokens", tolerance=1e-6)
    if weights_TX(padded).requires_grad:
        weights = weights_TX(padded)
        torch.autograd.backward((weights * normal(*weights.shape, seed=5)).sum())
        assert x_TD.grad is not None
        require_equal(x_TD.grad[~valid_T], torch.zeros_like(x_TD[~valid_T]), "gradient of padding tokens")
    require_equal(padded.load_E(), alone.load_E(), "load_E with padding")


def check_padding_nan(case: Case) -> None:
    """Keeps what lies in padding rows (NaN, here) out of valid tokens' gates and out of every gradient.

    Mask the input, not the result: in backward a gradient of 0 times NaN is NaN.
    """
    router = case.build()
    valid_T = torch.tensor([True, False, True, True, False])
    x_TD = normal(5, case.dims.dim).masked_fill(~valid_T[:, None], float("nan")).requires_grad_()
    weights = weights_TX(route(router, x_TD, valid_T))
    require_finite(weights[valid_T], "gates of valid tokens")
    if not weights.requires_grad:
        return
    torch.autograd.backward((weights * normal(*weights.shape, seed=5))[valid_T].sum())
    for name, parameter in router.named_parameters():
        if parameter.grad is not None:
            require_finite(parameter.grad, f"gradient of '{name}' with NaN in padding")
    if x_TD.grad is not None:
        require_finite(x_TD.grad[valid_T], "gradient of valid tokens with NaN in padding")


def check_extreme_logits(case: Case) -> None:
    """Keeps gates and gradients finite when logits are huge and all of one sign (0/0 waits in renormalising)."""
    for sign in (1.0, -1.0):
        router = case.build()
        with torch.no_grad():
            for parameter in router.parameters():
                if parameter.ndim >= 2:
                    parameter.fill_(1.0)
        x_TD = torch.full((6, case.dims.dim), sign * 1e5).requires_grad_()
        weights = weights_TX(route(router, x_TD))
        what = f"when all logits are near {sign * 1e5 * case.dims.dim:.0e}"
        require_finite(weights, f"gates {what}")
        if weights.requires_grad:
            torch.autograd.backward(weights.sum())
            assert x_TD.grad is not None
            require_finite(x_TD.grad, f"gradients {what}")


def check_nan_stays_with_its_token(case: Case) -> None:
    """Confines a NaN to the token that brought it: the others' gates stay finite, and unchanged in token choice."""
    router, x_TD = case.build().eval(), normal(9, case.dims.dim)
    others = torch.arange(9) != 4
    before = route(router, x_TD)
    x_TD[4] = float("nan")
    after = route(router, x_TD)
    if _spec(case).form == "token_choice" and _spec(case).causal:
        require_equal(weights_TX(after)[others], weights_TX(before)[others], "gates of other tokens", tolerance=1e-6)
    elif _dispatch_free(after):
        require_finite(weights_TX(after)[others], "gates of other tokens")
    if isinstance(after, TokenChoice):
        inside = bool(((after.expert_TK >= 0) & (after.expert_TK < case.dims.num_experts)).all())
        require(inside, found=f"experts {after.expert_TK[4].tolist()} for a NaN token", expected="valid experts")


def _dispatch_free(routing: Routing) -> bool:
    """False where tokens are blended in slots, so that a NaN cannot but reach the others."""
    return getattr(routing, "dispatch_TEP", None) is None


def _spec(case: Case) -> RouterSpec:
    assert isinstance(case.spec, RouterSpec)
    return case.spec
