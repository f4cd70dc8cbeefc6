"""Routers against their loops, in fp64: choice, gates, affinities, and every gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekit.contracts import LayerDims
from moekit_routers.dense import Dense
from moekit_routers.dense import naive as dense_naive
from moekit_routers.dense.module import DenseRouter
from moekit_routers.topk import TopK
from moekit_routers.topk import naive as topk_naive
from moekit_routers.topk.module import TopKRouter

# Tokens and weights are small whole numbers times a power of two, so logits are exact in any order of summation:
# ties are true ties, and the loops and the fast form see the same keys. 2048 puts logits at up to 7e4.
MAGNITUDES = (0.125, 0.5, 2048.0)
BIASES = (-2.0, -0.5, 0.0, 0.25, 1.0)


@dataclass
class Tokens:
    x_TD: Tensor
    weight_ED: Tensor
    bias_E: Tensor
    valid_T: Tensor | None


@st.composite
def tokens(draw: st.DrawFn, num_experts: int) -> Tokens:
    T, D = draw(st.integers(0, 5)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    magnitude = draw(st.sampled_from(MAGNITUDES))

    def whole(*shape: int) -> Tensor:
        return torch.randint(-3, 4, shape, generator=generator).double()

    valid_T = torch.rand(T, generator=generator) < 0.6 if draw(st.booleans()) else None
    return Tokens(whole(T, D), whole(num_experts, D) * magnitude, whole(num_experts) * magnitude, valid_T)


@st.composite
def topk_cases(draw: st.DrawFn) -> tuple[TopK, Tokens, list[float] | None]:
    E = draw(st.integers(1, 8))
    groups = draw(st.sampled_from([g for g in range(1, E + 1) if E % g == 0]))
    top_groups = draw(st.integers(1, groups))
    top_k = draw(st.integers(1, top_groups * E // groups))
    score = draw(st.sampled_from(["softmax", "sigmoid"]))
    softmax_of_one = top_k == 1 and score == "softmax"
    spec = TopK(
        top_k=top_k,
        score=score,
        score_over="all" if softmax_of_one else draw(st.sampled_from(["all", "chosen"])),
        groups=groups,
        top_groups=top_groups,
        group_score=draw(st.sampled_from(["max", "top2_sum"] if E // groups >= 2 else ["max"])),
        renormalize=top_k > 1 and draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 2.5, 16.0])),
        bias=draw(st.booleans()),
        send_threshold=draw(st.sampled_from([None, 0.2, 0.5])) if top_k > 1 else None,
    )
    biases = draw(st.sampled_from(["none", "mixed", "negative"]))
    choices = {"none": None, "mixed": BIASES, "negative": (-2.0, -1.5, -1.25)}[biases]
    selection = None if choices is None else draw(st.lists(st.sampled_from(choices), min_size=E, max_size=E))
    return spec, draw(tokens(E)), selection


def gradients(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, of, allow_unused=True, materialize_grads=True)


def close(a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12 * max(scale, 1.0))


def leaf(x: Tensor) -> Tensor:
    return x.clone().requires_grad_()


@settings(max_examples=400, deadline=None, derandomize=True)
@given(topk_cases())
def test_topk_is_its_equations(case: tuple[TopK, Tokens, list[float] | None]) -> None:
    spec, given_, selection = case
    T, D = given_.x_TD.shape
    E = given_.weight_ED.shape[0]
    router = TopKRouter(spec, LayerDims(dim=D, num_experts=E)).double()
    with torch.no_grad():
        router.weight_ED.copy_(given_.weight_ED)
        if router.bias_E is not None:
            router.bias_E.copy_(given_.bias_E)
    x_TD = leaf(given_.x_TD)
    bias_E = None if selection is None else torch.tensor(selection, dtype=torch.float32)
    torch.manual_seed(7)
    out = router(x_TD, valid_T=given_.valid_T, selection_bias_E=bias_E)
    torch.manual_seed(7)
    u_TK = torch.rand(T, spec.top_k, dtype=torch.float64)  # what the router has just drawn

    x0_TD, w0_ED, b0_E = leaf(given_.x_TD), leaf(given_.weight_ED), leaf(given_.bias_E)
    expected = topk_naive.route(
        x0_TD,
        w0_ED,
        top_k=spec.top_k,
        kind=spec.score,
        score_over=spec.score_over,
        groups=spec.groups,
        top_groups=spec.top_groups or spec.groups,
        group_score=spec.group_score,
        renormalize=spec.renormalize,
        scale=spec.scale,
        logit_bias=list(b0_E) if spec.bias else None,
        selection_bias=selection,
        send_threshold=spec.send_threshold,
        u_TK=u_TK,
    )
    valid_T = torch.ones(T, dtype=torch.bool) if given_.valid_T is None else given_.valid_T
    assert out.gate_TK.dtype == out.scores_TE.dtype == out.logits_TE.dtype == torch.float64
    assert out.expert_TK.shape == out.gate_TK.shape == (T, spec.top_k)
    assert [out.expert_TK[t].tolist() for t in range(T) if valid_T[t]] == [
        expected.chosen[t] for t in range(T) if valid_T[t]
    ]
    assert (out.sent_TK is None) == (spec.send_threshold is None)
    if out.sent_TK is not None:
        assert out.sent_TK[valid_T].tolist() == [expected.sent[t] for t in range(T) if valid_T[t]]
    close(out.gate_TK[valid_T], expected.gate_TK[valid_T])
    close(out.scores_TE[valid_T], expected.scores_TE[valid_T])
    close(out.logits_TE[valid_T], expected.logits_TE[valid_T])

    def loss(gate_TK: Tensor, scores_TE: Tensor, logits_TE: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        parts = []
        for part in (gate_TK, scores_TE, logits_TE):
            parts.append((torch.randn(part.shape, generator=generator, dtype=part.dtype) * part)[valid_T].sum())
        return torch.stack(parts).sum()

    mine: list[Any] = [x_TD, router.weight_ED, *([router.bias_E] if router.bias_E is not None else [])]
    theirs = [x0_TD, w0_ED, *([b0_E] if spec.bias else [])]
    if T:
        got = gradients(loss(out.gate_TK, out.scores_TE, out.logits_TE), *mine)
        want = gradients(loss(expected.gate_TK, expected.scores_TE, expected.logits_TE), *theirs)
        for a, b in zip(got, want, strict=True):
            close(a, b, scale=16 * given_.weight_ED.abs().max().item())
        assert not got[0][~valid_T].any()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(1, 6).flatmap(tokens), st.booleans())
def test_dense_is_its_equation(given_: Tokens, bias: bool) -> None:
    T, D = given_.x_TD.shape
    E = given_.weight_ED.shape[0]
    router = DenseRouter(Dense(bias=bias), LayerDims(dim=D, num_experts=E)).double()
    with torch.no_grad():
        router.weight_ED.copy_(given_.weight_ED)
        if router.bias_E is not None:
            router.bias_E.copy_(given_.bias_E)
    x_TD = leaf(given_.x_TD)
    out = router(x_TD, valid_T=given_.valid_T)
    x0_TD, w0_ED, b0_E = leaf(given_.x_TD), leaf(given_.weight_ED), leaf(given_.bias_E)
    gate_TE = dense_naive.gates(x0_TD, w0_ED, b0_E if bias else None, given_.valid_T)
    assert out.combine_TEP.shape == (T, E, 1)
    assert out.dispatch_TEP is None
    close(out.combine_TEP[:, :, 0], gate_TE)
    if T:
        weights_TE = torch.randn(T, E, dtype=torch.float64)
        mine = [x_TD, router.weight_ED, *([router.bias_E] if router.bias_E is not None else [])]
        theirs = [x0_TD, w0_ED, *([b0_E] if bias else [])]
        got = gradients((weights_TE * out.combine_TEP[:, :, 0]).sum(), *mine)
        want = gradients((weights_TE * gate_TE).sum(), *theirs)
        for a, b in zip(got, want, strict=True):
            close(a, b, scale=16 * given_.weight_ED.abs().max().item())
