"""Routers against their loops, in fp64: choices, gates, affinities, load, own loss, and every gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekit.contracts import LayerDims
from moekit.moe_layer import MoELayer
from moekit.registry import build
from moekit.routing import TokenChoice
from moekit_dispatchers.grouped import Grouped
from moekit_experts.ffn import Ffn
from moekit_routers.dense import Dense
from moekit_routers.dense import naive as dense_naive
from moekit_routers.dense.module import DenseRouter
from moekit_routers.hash import Hash
from moekit_routers.hash import naive as hash_naive
from moekit_routers.hash.module import HashRouter
from moekit_routers.hierarchical import Hierarchical
from moekit_routers.hierarchical import naive as hierarchical_naive
from moekit_routers.hierarchical.module import HierarchicalRouter
from moekit_routers.noisy_topk import NoisyTopK
from moekit_routers.noisy_topk import naive as noisy_naive
from moekit_routers.noisy_topk.module import NoisyTopKRouter
from moekit_routers.sparse_mixer import SparseMixer
from moekit_routers.sparse_mixer import naive as sparse_mixer_naive
from moekit_routers.sparse_mixer.module import SparseMixerRouter
from moekit_routers.strict import Strict
from moekit_routers.strict import naive as strict_naive
from moekit_routers.strict.module import StrictRouter
from moekit_routers.topk import TopK
from moekit_routers.topk import naive as topk_naive
from moekit_routers.topk.module import TopKRouter

BIASES = (-2.0, -0.5, 0.0, 0.25, 1.0)


@dataclass
class Tokens:
    """Tokens and weights (matrices, then perhaps a vector): small integers times a power of two.

    So logits are exact in any order of summation, ties are true ties, and loops and fast code see the same keys. A
    magnitude of 2048 makes logits of up to 7e4.
    """

    x_TD: Tensor
    weights: list[Tensor]
    valid_T: Tensor | None
    magnitude: float

    @property
    def valid(self) -> list[bool] | None:
        return None if self.valid_T is None else self.valid_T.tolist()

    def rows(self) -> Tensor:
        """bool: the valid tokens."""
        return torch.ones(self.x_TD.shape[0], dtype=torch.bool) if self.valid_T is None else self.valid_T


@st.composite
def tokens(
    draw: st.DrawFn, rows: Sequence[int], magnitudes: Sequence[float] = (0.125, 2048.0), bias: int = 0
) -> Tokens:
    T, D = draw(st.integers(0, 6)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    magnitude = draw(st.sampled_from(magnitudes))

    def integers(*shape: int) -> Tensor:
        return torch.randint(-3, 4, shape, generator=generator).double()

    valid_T = torch.rand(T, generator=generator) < 0.6 if draw(st.booleans()) else None
    weights = [integers(n, D) * magnitude for n in rows] + ([integers(bias) * magnitude] if bias else [])
    return Tokens(integers(T, D), weights, valid_T, magnitude)


def leaf(x: Tensor) -> Tensor:
    return x.clone().requires_grad_()


def close(a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11 * max(scale, 1.0))


def fill(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def weighted_sum(*parts: Tensor | None) -> Tensor:
    """One number that depends on every element, each with a random weight."""
    generator = torch.Generator().manual_seed(1)
    sums = [(torch.randn(p.shape, generator=generator, dtype=p.dtype) * p).sum() for p in parts if p is not None]
    return torch.stack(sums).sum()


def same_gradients(
    mine: Tensor, theirs: Tensor, my: Sequence[Tensor], their: Sequence[Tensor], scale: float
) -> Sequence[Tensor]:
    if not theirs.requires_grad:
        return []
    got = torch.autograd.grad(mine, my, allow_unused=True, materialize_grads=True)
    want = torch.autograd.grad(theirs, their, allow_unused=True, materialize_grads=True)
    for a, b in zip(got, want, strict=True):
        close(a, b, scale)
    return got


# ---- topk, dense ----------------------------------------------------------------------------------------------------


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
    return spec, draw(tokens([E], (0.125, 0.5, 2048.0), bias=E if spec.bias else 0)), selection


@settings(max_examples=400, deadline=None, derandomize=True)
@given(topk_cases())
def test_topk_is_its_equations(case: tuple[TopK, Tokens, list[float] | None]) -> None:
    spec, given_, selection = case
    (T, D), E = given_.x_TD.shape, given_.weights[0].shape[0]
    router = TopKRouter(spec, LayerDims(dim=D, num_experts=E)).double()
    parameters = [router.weight_ED, *([] if router.bias_E is None else [router.bias_E])]
    fill(parameters, given_.weights)
    x_TD = leaf(given_.x_TD)
    bias_E = None if selection is None else torch.tensor(selection, dtype=torch.float32)
    torch.manual_seed(7)
    out = router(x_TD, valid_T=given_.valid_T, selection_bias_E=bias_E)
    torch.manual_seed(7)
    u_TK = torch.rand(T, spec.top_k, dtype=torch.float64)  # the router's random numbers

    x0_TD, weights = leaf(given_.x_TD), [leaf(w) for w in given_.weights]
    expected = topk_naive.route(
        x0_TD,
        weights[0],
        top_k=spec.top_k,
        kind=spec.score,
        score_over=spec.score_over,
        groups=spec.groups,
        top_groups=spec.top_groups or spec.groups,
        group_score=spec.group_score,
        renormalize=spec.renormalize,
        scale=spec.scale,
        logit_bias=list(weights[1]) if spec.bias else None,
        selection_bias=selection,
        send_threshold=spec.send_threshold,
        u_TK=u_TK,
    )
    rows = given_.rows()
    assert out.gate_TK.dtype == out.scores_TE.dtype == out.logits_TE.dtype == torch.float64
    assert out.expert_TK.shape == out.gate_TK.shape == (T, spec.top_k)
    assert out.expert_TK[rows].tolist() == [expected.chosen[t] for t in range(T) if rows[t]]
    assert (out.sent_TK is None) == (spec.send_threshold is None)
    if out.sent_TK is not None:
        assert out.sent_TK[rows].tolist() == [expected.sent[t] for t in range(T) if rows[t]]
    for name in ("gate_TK", "scores_TE", "logits_TE"):
        torch.testing.assert_close(getattr(out, name)[rows], getattr(expected, name)[rows], rtol=1e-10, atol=1e-12)
    if T:
        gradients = same_gradients(
            weighted_sum(out.gate_TK[rows], out.scores_TE[rows], out.logits_TE[rows]),
            weighted_sum(expected.gate_TK[rows], expected.scores_TE[rows], expected.logits_TE[rows]),
            [x_TD, *parameters],
            [x0_TD, *weights],
            16 * given_.magnitude,
        )
        assert not gradients[0][~rows].any()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.integers(1, 6).flatmap(lambda E: st.tuples(st.integers(1, E), tokens([E], (0.125, 0.5, 64.0)))),
    st.sampled_from([0.0, 0.01, 0.3, 2.0]),
    st.booleans(),
)
def test_sparse_mixer_is_its_equations(case: tuple[int, Tokens], r: float, training: bool) -> None:
    top_k, given_ = case
    (T, D), E = given_.x_TD.shape, given_.weights[0].shape[0]
    router = SparseMixerRouter(SparseMixer(top_k=top_k, jitter=r), LayerDims(dim=D, num_experts=E)).double()
    router.train(training)
    fill([router.weight_ED], given_.weights)
    x_TD = leaf(given_.x_TD)
    torch.manual_seed(7)
    out = router(x_TD, valid_T=given_.valid_T)
    torch.manual_seed(7)  # the router's random numbers, in its order
    sampled = [
        (-torch.empty(T, E, dtype=torch.float64).exponential_().log(), torch.rand(T, 1, dtype=torch.float64)[:, 0])
        for _ in range(top_k)
    ]
    noise_KTE, u_KT = (torch.stack(each) for each in zip(*sampled, strict=True)) if training else (None, None)

    x0_TD, weight_ED = leaf(given_.x_TD), leaf(given_.weights[0])
    chosen, gate_TK, logits_TE = sparse_mixer_naive.route(
        x0_TD, weight_ED, top_k=top_k, r=r, noise_KTE=noise_KTE, u_KT=u_KT
    )
    rows = given_.rows()
    assert out.expert_TK.shape == out.gate_TK.shape == (T, top_k)
    assert out.expert_TK[rows].tolist() == [chosen[t] for t in range(T) if rows[t]]
    for found, expected in ((out.gate_TK, gate_TK), (out.logits_TE, logits_TE)):
        torch.testing.assert_close(found[rows], expected[rows], rtol=1e-10, atol=1e-12)
    if T:
        gradients = same_gradients(
            weighted_sum(out.gate_TK[rows], out.logits_TE[rows]),
            weighted_sum(gate_TK[rows], logits_TE[rows]),
            [x_TD, router.weight_ED],
            [x0_TD, weight_ED],
            16 * given_.magnitude,
        )
        assert not gradients[0][~rows].any()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(1, 6).flatmap(lambda E: st.sampled_from([0, E]).flatmap(lambda bias: tokens([E], bias=bias))))
def test_dense_is_its_equation(given_: Tokens) -> None:
    (T, D), E = given_.x_TD.shape, given_.weights[0].shape[0]
    bias = len(given_.weights) == 2
    router = DenseRouter(Dense(bias=bias), LayerDims(dim=D, num_experts=E)).double()
    parameters = [router.weight_ED, *([] if router.bias_E is None else [router.bias_E])]
    fill(parameters, given_.weights)
    x_TD, x0_TD, weights = leaf(given_.x_TD), leaf(given_.x_TD), [leaf(w) for w in given_.weights]
    out = router(x_TD, valid_T=given_.valid_T)
    gate_TE = dense_naive.gates(x0_TD, weights[0], weights[1] if bias else None, given_.valid_T)
    assert out.combine_TEP.shape == (T, E, 1)
    assert out.dispatch_TEP is None
    torch.testing.assert_close(out.combine_TEP[:, :, 0], gate_TE, rtol=1e-10, atol=1e-12)
    if T:
        mine, theirs = weighted_sum(out.combine_TEP[:, :, 0]), weighted_sum(gate_TE)
        same_gradients(mine, theirs, [x_TD, *parameters], [x0_TD, *weights], 16 * given_.magnitude)


def jitter_of(x_TD: Tensor, epsilon: float) -> Tensor:
    """The factors by which a router in training multiplied its input of ones: with W = I they are its logits."""
    D = x_TD.shape[1]
    router = TopKRouter(TopK(top_k=1, input_jitter=epsilon), LayerDims(dim=D, num_experts=D)).train()
    fill([router.weight_ED], [torch.eye(D)])
    return router(x_TD).logits_TE.detach()


def test_jitter_is_independent_for_every_element() -> None:
    """Switch, section 2.4, as in its code: U(1 - eps, 1 + eps) for each element, not one for each token."""
    torch.manual_seed(0)
    eps = 1e-2
    factor_TD = jitter_of(torch.ones(50, 64), eps)
    assert factor_TD.min() >= 1 - eps and factor_TD.max() <= 1 + eps
    for std in (factor_TD.std(0), factor_TD.std(1)):  # that of a uniform distribution is eps / sqrt(3)
        torch.testing.assert_close(std, torch.full_like(std, eps / 3**0.5), rtol=0.3, atol=0)
    assert abs(factor_TD.mean() - 1) < eps / 50


def test_jitter_on_bf16_tokens_is_not_rounded_to_bf16() -> None:
    """bf16 has five numbers within 1% of 1: the router's input is converted before it is multiplied."""
    torch.manual_seed(0)
    factor_TD = jitter_of(torch.ones(4, 64, dtype=torch.bfloat16), 1e-2)
    assert factor_TD.dtype == torch.float32
    assert factor_TD.unique().numel() > 200


# ---- noisy_topk, hierarchical, strict -------------------------------------------------------------------------------


def epsilon_for(magnitude: float) -> float:
    return 0.0 if magnitude < 1 else 1e-2  # softplus(-7e4) is 0; without epsilon the paper divides by it


def same_noisy_routing(out: TokenChoice, expected: Any, rows: Tensor, training: bool) -> None:
    assert out.expert_TK[rows].tolist() == [expected.chosen[t] for t in range(len(rows)) if rows[t]]
    close(out.gate_TK[rows], expected.gate_TK[rows])
    close(out.scores_TE[rows], expected.scores_TE[rows])
    assert (out.smooth_load_E is None) == (expected.load_E is None) == (not training)
    if out.smooth_load_E is not None:
        close(out.smooth_load_E, expected.load_E)


@st.composite
def noisy_cases(draw: st.DrawFn) -> tuple[int, bool, Tokens, list[float] | None]:
    E = draw(st.integers(2, 6))
    selection = draw(st.none() | st.lists(st.sampled_from(BIASES), min_size=E, max_size=E))
    return draw(st.integers(2, E)), draw(st.booleans()), draw(tokens([E, E])), selection


@settings(max_examples=50, deadline=None, derandomize=True)
@given(noisy_cases())
def test_noisy_topk_is_its_equations(case: tuple[int, bool, Tokens, list[float] | None]) -> None:
    top_k, training, given_, selection = case
    (T, D), E = given_.x_TD.shape, given_.weights[0].shape[0]
    epsilon = epsilon_for(given_.magnitude)
    spec = NoisyTopK(top_k=top_k, noise_epsilon=epsilon)
    router = NoisyTopKRouter(spec, LayerDims(dim=D, num_experts=E)).double().train(training)
    parameters = [router.weight_ED, router.noise_weight_ED]
    fill(parameters, given_.weights)
    x_TD = leaf(given_.x_TD)
    torch.manual_seed(3)
    out = router(x_TD, valid_T=given_.valid_T, selection_bias_E=None if selection is None else torch.tensor(selection))
    torch.manual_seed(3)
    noise_TE = torch.randn(T, E, dtype=torch.float64) if training else None

    x0_TD, weights = leaf(given_.x_TD), [leaf(w) for w in given_.weights]
    expected = noisy_naive.route(
        x0_TD,
        *weights,
        top_k=top_k,
        epsilon=epsilon,
        noise_TE=noise_TE,
        selection_bias=selection,
        valid=given_.valid,
    )
    rows = given_.rows()
    same_noisy_routing(out, expected, rows, training)
    close(out.logits_TE[rows], expected.logits_TE[rows])
    same_gradients(
        weighted_sum(out.gate_TK[rows], out.scores_TE[rows], out.logits_TE[rows], out.smooth_load_E),
        weighted_sum(expected.gate_TK[rows], expected.scores_TE[rows], expected.logits_TE[rows], expected.load_E),
        [x_TD, *parameters],
        [x0_TD, *weights],
        16 * given_.magnitude,
    )


@st.composite
def hierarchical_cases(draw: st.DrawFn) -> tuple[Hierarchical, bool, Tokens]:
    branches, size = draw(st.integers(2, 4)), draw(st.integers(2, 3))
    E = branches * size
    given_ = draw(tokens([branches, branches, E, E]))
    spec = Hierarchical(
        branches=branches,
        top_groups=draw(st.integers(2, branches)),
        top_k=draw(st.integers(2, size)),
        noise_epsilon=epsilon_for(given_.magnitude),
    )
    return spec, draw(st.booleans()), given_


@settings(max_examples=50, deadline=None, derandomize=True)
@given(hierarchical_cases())
def test_hierarchical_is_its_equations(case: tuple[Hierarchical, bool, Tokens]) -> None:
    spec, training, given_ = case
    (T, D), E = given_.x_TD.shape, given_.weights[2].shape[0]
    router = HierarchicalRouter(spec, LayerDims(dim=D, num_experts=E)).double().train(training)
    parameters = [
        router.group_weight_GD,
        router.group_noise_weight_GD,
        router.weight_ED,
        router.noise_weight_ED,
    ]
    fill(parameters, given_.weights)
    x_TD = leaf(given_.x_TD)
    torch.manual_seed(3)
    out = router(x_TD, valid_T=given_.valid_T)
    torch.manual_seed(3)
    noise_TG = torch.randn(T, spec.branches, dtype=torch.float64) if training else None
    noise_TKX = torch.randn(T, spec.top_groups, E // spec.branches, dtype=torch.float64) if training else None

    x0_TD, weights = leaf(given_.x_TD), [leaf(w) for w in given_.weights]
    expected = hierarchical_naive.route(
        x0_TD,
        *weights,
        top_groups=spec.top_groups,
        top_k=spec.top_k,
        epsilon=spec.noise_epsilon,
        noise_TG=noise_TG,
        noise_TKX=noise_TKX,
        valid=given_.valid,
    )
    rows = given_.rows()
    same_noisy_routing(out, expected, rows, training)
    close(out.logits_TE.softmax(-1), out.scores_TE)
    same_gradients(
        weighted_sum(out.gate_TK[rows], out.scores_TE[rows], out.smooth_load_E),
        weighted_sum(expected.gate_TK[rows], expected.scores_TE[rows], expected.load_E),
        [x_TD, *parameters],
        [x0_TD, *weights],
        16 * given_.magnitude,
    )


@st.composite
def strict_cases(draw: st.DrawFn) -> tuple[int, bool, Tokens]:
    E = draw(st.integers(1, 5))
    given_ = draw(tokens([E], magnitudes=(0.125, 0.5)))
    if given_.x_TD.shape[0] > 2 and draw(st.booleans()):
        given_.x_TD[-1] = given_.x_TD[0]  # a tie at every expert
    return draw(st.integers(1, E)), draw(st.booleans()), given_


def near_ties(scores_TE: Tensor, x_TD: Tensor) -> bool:
    """Whether different tokens have the same affinity up to rounding, so that loops may choose another one."""
    close_TTE = (scores_TE[:, None] - scores_TE[None]).abs() < 1e-12
    other_TT = (x_TD[:, None] != x_TD[None]).any(-1)
    return scores_TE.shape[1] > 1 and bool((close_TTE & other_TT[:, :, None]).any())


@settings(max_examples=50, deadline=None, derandomize=True)
@given(strict_cases())
def test_strict_is_its_equations(case: tuple[int, bool, Tokens]) -> None:
    top_k, training, given_ = case
    (T, D), E = given_.x_TD.shape, given_.weights[0].shape[0]
    router = StrictRouter(Strict(top_k=top_k), LayerDims(dim=D, num_experts=E)).double().train(training)
    threshold_E = 1 / E + 0.2 * torch.randn(E, generator=torch.Generator().manual_seed(T), dtype=torch.float64)
    fill([router.weight_ED, router.threshold_E], [given_.weights[0], threshold_E])
    x_TD = leaf(given_.x_TD)
    out = router(x_TD, valid_T=given_.valid_T)
    assume(not near_ties(out.scores_TE.detach(), given_.x_TD))

    x0_TD, w0_ED, t0_E = leaf(given_.x_TD), leaf(given_.weights[0]), leaf(threshold_E)
    expected = strict_naive.route(x0_TD, w0_ED, t0_E, top_k=top_k, training=training, valid=given_.valid)
    rows = given_.rows()
    assert out.sent_TK is not None
    assert [row.nonzero().flatten().tolist() for row in out.sent_TK[rows]] == [
        expected.kept[t] for t in range(T) if rows[t]
    ]
    close(out.gate_TK[rows], expected.gate_TE[rows])
    same_gradients(
        weighted_sum(out.gate_TK[rows]),
        weighted_sum(expected.gate_TE[rows]),
        [x_TD, router.weight_ED],
        [x0_TD, w0_ED],
        16,
    )
    assert (out.own_loss is None) == (expected.loss is None) == (not training)
    if out.own_loss is not None and expected.loss is not None:
        close(out.own_loss.value, expected.loss)
        all_mine, all_theirs = [x_TD, router.weight_ED, router.threshold_E], [x0_TD, w0_ED, t0_E]
        same_gradients(out.own_loss.value, expected.loss, all_mine, all_theirs, 1)


def test_strict_sends_no_token_that_only_reaches_the_threshold() -> None:
    """Shazeer et al., appendix F: x > T. At the start, with equal logits, no token is sent to any expert."""
    router = StrictRouter(Strict(top_k=2), LayerDims(dim=3, num_experts=4)).eval()
    with torch.no_grad():
        router.weight_ED.zero_()
    routing = router(torch.randn(5, 3))
    assert routing.sent_TK is not None and not routing.sent_TK.any()
    assert not routing.gate_TK.any()
    with torch.no_grad():
        router.threshold_E[1] -= 1e-6
    assert router(torch.randn(5, 3)).load_E().tolist() == [0, 5, 0, 0]


# ---- hash -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 18), min_size=1, max_size=12), seed=st.integers(0, 5))
def test_hash_layers_are_their_loops(ids: list[int], seed: int) -> None:
    """The whole layer, since there is nothing but the choice of an expert."""
    experts = build(Ffn(count=4, hidden=3), LayerDims(dim=5, num_experts=4)).double()
    router = HashRouter(Hash(vocab=19, seed=seed), LayerDims(dim=5, num_experts=4))
    layer = MoELayer(router=router, experts=experts, dispatcher=build(Grouped(), LayerDims(dim=5, num_experts=4)))
    x_TD = torch.randn(len(ids), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    y_TD, _ = layer(x_TD, tokens=torch.tensor(ids))
    up_EHD, down_EDH = experts.w_up_EHD.detach(), experts.w_down_EOH.detach()
    outputs = [[down_EDH[e] @ (up_EHD[e] @ x).relu() for e in range(4)] for x in x_TD]
    close(y_TD, torch.stack(hash_naive.combine(ids, router.expert_V.tolist(), outputs)))
