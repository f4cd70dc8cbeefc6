"""Noisy, hierarchical and strictly balanced routing against their loops, in fp64, with the noise that was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekit.contracts import LayerDims
from moekit_routers.hierarchical import Hierarchical
from moekit_routers.hierarchical import naive as hierarchical_naive
from moekit_routers.hierarchical.module import HierarchicalRouter
from moekit_routers.noisy_topk import NoisyTopK
from moekit_routers.noisy_topk import naive as noisy_naive
from moekit_routers.noisy_topk.module import NoisyTopKRouter
from moekit_routers.strict import Strict
from moekit_routers.strict import naive as strict_naive
from moekit_routers.strict.module import StrictRouter

BIASES = (-2.0, -0.5, 0.0, 0.25, 1.0)


@dataclass
class Tokens:
    """Whole numbers, so that logits are exact in any order of summation, and weights times a power of two."""

    x_TD: Tensor
    weights: list[Tensor]
    valid_T: Tensor | None
    magnitude: float

    @property
    def valid(self) -> list[bool] | None:
        return None if self.valid_T is None else self.valid_T.tolist()

    def rows(self) -> Tensor:
        return torch.ones(self.x_TD.shape[0], dtype=torch.bool) if self.valid_T is None else self.valid_T


@st.composite
def tokens(draw: st.DrawFn, rows: Sequence[int], magnitudes: Sequence[float] = (0.125, 2048.0)) -> Tokens:
    T, D = draw(st.integers(0, 6)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    magnitude = draw(st.sampled_from(magnitudes))

    def whole(*shape: int) -> Tensor:
        return torch.randint(-3, 4, shape, generator=generator).double()

    valid_T = torch.rand(T, generator=generator) < 0.6 if draw(st.booleans()) else None
    return Tokens(whole(T, D), [whole(n, D) * magnitude for n in rows], valid_T, magnitude)


def leaf(x: Tensor) -> Tensor:
    return x.clone().requires_grad_()


def close(a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11 * max(scale, 1.0))


def fill(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def weighed(*parts: Tensor | None) -> Tensor:
    """One number that depends on every entry, each with a weight of its own."""
    generator = torch.Generator().manual_seed(1)
    sums = [(torch.randn(p.shape, generator=generator, dtype=p.dtype) * p).sum() for p in parts if p is not None]
    return torch.stack(sums).sum()


def same_gradients(mine: Tensor, theirs: Tensor, my: Sequence[Tensor], their: Sequence[Tensor], scale: float) -> None:
    if not theirs.requires_grad:
        return
    got = torch.autograd.grad(mine, my, allow_unused=True, materialize_grads=True)
    want = torch.autograd.grad(theirs, their, allow_unused=True, materialize_grads=True)
    for a, b in zip(got, want, strict=True):
        close(a, b, scale)


def epsilon_for(magnitude: float) -> float:
    return 0.0 if magnitude < 1 else 1e-2  # a softplus of -7e4 is 0: without the epsilon the paper divides by it


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
    assert out.expert_TK[rows].tolist() == [expected.chosen[t] for t in range(T) if rows[t]]
    close(out.gate_TK[rows], expected.gate_TK[rows])
    close(out.scores_TE[rows], expected.scores_TE[rows])
    close(out.logits_TE[rows], expected.logits_TE[rows])
    assert (out.smooth_load_E is None) == (expected.load_E is None) == (not training)
    if out.smooth_load_E is not None and expected.load_E is not None:
        close(out.smooth_load_E, expected.load_E)
    same_gradients(
        weighed(out.gate_TK[rows], out.scores_TE[rows], out.logits_TE[rows], out.smooth_load_E),
        weighed(expected.gate_TK[rows], expected.scores_TE[rows], expected.logits_TE[rows], expected.load_E),
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
    assert out.expert_TK[rows].tolist() == [expected.chosen[t] for t in range(T) if rows[t]]
    close(out.gate_TK[rows], expected.gate_TK[rows])
    close(out.scores_TE[rows], expected.scores_TE[rows])
    close(out.logits_TE.softmax(-1), out.scores_TE)
    assert (out.smooth_load_E is None) == (expected.load_E is None) == (not training)
    if out.smooth_load_E is not None and expected.load_E is not None:
        close(out.smooth_load_E, expected.load_E)
    same_gradients(
        weighed(out.gate_TK[rows], out.scores_TE[rows], out.smooth_load_E),
        weighed(expected.gate_TK[rows], expected.scores_TE[rows], expected.load_E),
        [x_TD, *parameters],
        [x0_TD, *weights],
        16 * given_.magnitude,
    )


@st.composite
def strict_cases(draw: st.DrawFn) -> tuple[int, bool, Tokens]:
    E = draw(st.integers(1, 5))
    given_ = draw(tokens([E], magnitudes=(0.125, 0.5)))
    if given_.x_TD.shape[0] > 2 and draw(st.booleans()):
        given_.x_TD[-1] = given_.x_TD[0]  # a true tie at every expert
    return draw(st.integers(1, E)), draw(st.booleans()), given_


def near_ties(scores_TE: Tensor, x_TD: Tensor) -> bool:
    """Whether two different tokens suit an expert alike but for rounding, which the loops may do otherwise."""
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
        weighed(out.gate_TK[rows]), weighed(expected.gate_TE[rows]), [x_TD, router.weight_ED], [x0_TD, w0_ED], 16
    )
    assert (out.own_loss is None) == (expected.loss is None) == (not training)
    if out.own_loss is not None and expected.loss is not None:
        close(out.own_loss.value, expected.loss)
        all_mine, all_theirs = [x_TD, router.weight_ED, router.threshold_E], [x0_TD, w0_ED, t0_E]
        same_gradients(out.own_loss.value, expected.loss, all_mine, all_theirs, 1)
