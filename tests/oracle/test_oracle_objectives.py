"""Objectives against loops and derived gradients, in fp64: next- and multi-token prediction, and the errors of 1991."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekit.contracts import Batch, LayerReport, LossSum, ModelOutput, Source
from moekit.routing import Soft, TokenChoice
from moekit_objectives.causal_lm import CausalLM
from moekit_objectives.causal_lm import naive as causal_naive
from moekit_objectives.causal_lm.module import CausalLMObjective
from moekit_objectives.competitive import Competitive
from moekit_objectives.competitive import naive as competitive_naive
from moekit_objectives.competitive.module import CompetitiveObjective

# ---- causal_lm -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 3), st.integers(2, 5), st.integers(0, 2), st.floats(0, 1), st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_prediction_loss_before_and_after_lambda_changes(
    B: int, T: int, depth: int, progress: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    V, depth = 4, min(depth, T - 1)
    tokens_BT = torch.randint(V, (B, T + 1), generator=generator)
    logits = [
        torch.randn(B, T - k, V, generator=generator, dtype=torch.float64, requires_grad=True) for k in range(depth + 1)
    ]
    spec = CausalLM(mtp_weight=0.3, mtp_late_weight=0.1, mtp_late_from=10 / 14.8)
    output = ModelOutput(y=logits[0], future=tuple(logits[1:]))
    found = CausalLMObjective(spec)(output, Batch(tokens_BT[:, :-1], tokens_BT[:, 1:]), progress=progress)
    weight = causal_naive.weight_at(progress * 14.8, early=0.3, late=0.1, turn=10.0)
    expected = causal_naive.mean_loss(tokens_BT, [z.softmax(-1) for z in logits], weight)
    mean = found.total / found.count
    torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-12)
    for a, b in zip(torch.autograd.grad(mean, logits), torch.autograd.grad(expected, logits), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_the_balance_loss_of_all_layers_together_is_the_references(B: int, layers: int, top_k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    T, E = 4 * B, 4
    valid_BS = torch.rand(B, 4, generator=generator) < 0.7
    valid_BS[0, 0] = True
    logits = [torch.randn(T, E, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(layers)]
    reports = {}
    for i, logits_TE in enumerate(logits):
        chosen, valid_T = logits_TE.detach().topk(top_k).indices, valid_BS.flatten()
        routing = TokenChoice(
            logits_TE=logits_TE, scores_TE=logits_TE.softmax(-1), valid_T=valid_T, expert_TK=chosen,
            gate_TK=torch.ones(T, top_k),
        )  # fmt: skip
        zero = torch.zeros((), dtype=torch.int64)
        reports[f"{i}"] = LayerReport(routing=routing, dropped=zero)
    output = ModelOutput(y=torch.zeros(B, 4, 5, dtype=torch.float64), reports=reports)
    tokens_BS = torch.zeros(B, 4, dtype=torch.int64)
    made = CausalLMObjective(CausalLM(pooled_balance=0.5))(output, Batch(tokens_BS, tokens_BS, valid_BS))
    found = (made.total - made.metrics["loss"][0]) / made.count
    expected = 0.5 * causal_naive.pooled_balance(logits, valid_BS.flatten(), top_k)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    for a, b in zip(torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@given(st.integers(1, 3), st.integers(1, 4), st.floats(0, 1), st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_the_z_loss_of_the_output_softmax_is_the_references(B: int, S: int, weight: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_BSV = torch.randn(B, S, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    tokens_BS = torch.randint(5, (B, S), generator=generator)
    valid_BS = torch.randint(2, (B, S), generator=generator).bool()
    valid_BS[0, 0] = True
    batch = Batch(tokens_BS, tokens_BS, valid_BS)
    plain, both = (CausalLMObjective(CausalLM(z_loss=w))(ModelOutput(y=logits_BSV), batch) for w in (0.0, weight))
    expected = weight * causal_naive.mean_squared_z(logits_BSV, valid_BS)
    found = (both.total - plain.total) / both.count
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    for a, b in zip(torch.autograd.grad(found, logits_BSV), torch.autograd.grad(expected, logits_BSV), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_deepseek_v3_trains_10_of_14_8_trillion_tokens_with_the_larger_lambda() -> None:
    spec = CausalLM(mtp_late_weight=0.1)
    assert [spec.weight_at(tokens / 14.8) for tokens in (0.0, 9.99, 10.01, 14.8)] == [0.3, 0.3, 0.1, 0.1]
    assert CausalLM().weight_at(1.0) == 0.3  # constant by default
    assert CausalLM(mtp_late_weight=0.0, mtp_late_from=0.5).weight_at(0.5) == 0.0


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**16))
@settings(max_examples=50, deadline=None)
def test_exact_match_is_the_references(B: int, S: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_BSV = torch.randint(3, (B, S, 3), generator=generator).double()  # with ties, and with correct sequences
    targets_BS, valid_BS = torch.randint(2, (2, B, S), generator=generator)
    batch = Batch(targets_BS, targets_BS, valid_BS.bool(), source=Source(torch.zeros(B, 7, dtype=torch.int64)))
    right, total = CausalLMObjective(CausalLM(exact=True))(ModelOutput(y=logits_BSV), batch).metrics["exact"]
    assert (int(right), int(total)) == causal_naive.exact(logits_BSV.softmax(-1), targets_BS, valid_BS)


def test_exact_match_is_logged_only_on_request() -> None:
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    assert (
        "exact" not in CausalLMObjective(CausalLM())(ModelOutput(y=torch.zeros(1, 2, 3)), Batch(tokens, tokens)).metrics
    )


def test_lambda_cannot_change_after_the_end_of_training() -> None:
    with pytest.raises(ValueError, match=r"mtp_late_from=10.0 is out of range \(>= 0 and <= 1\)"):
        CausalLM(mtp_late_from=10.0)


# ---- competitive -----------------------------------------------------------------------------------------------------

Error = Literal["cooperative", "competitive", "likelihood"]
ERRORS: tuple[Error, ...] = ("cooperative", "competitive", "likelihood")
DERIVED: dict[Error, Callable[[Tensor, Tensor, Tensor], competitive_naive.Answer]] = {
    "cooperative": competitive_naive.cooperative,
    "competitive": competitive_naive.competitive,
    "likelihood": competitive_naive.likelihood,
}


def competitive_loss(error: Error, d_TO: Tensor, o_TEO: Tensor, a_TE: Tensor, valid_T: Tensor | None = None) -> LossSum:
    """The objective on given expert outputs and gate logits."""
    p_TE = a_TE.softmax(-1)
    routing = Soft(logits_TE=a_TE, scores_TE=p_TE, combine_TEP=p_TE[:, :, None], valid_T=valid_T)
    y_TO = (p_TE[:, :, None] * o_TEO).sum(1)
    report = LayerReport(routing=routing, dropped=torch.zeros((), dtype=torch.int64), expert_TEO=o_TEO)
    output = ModelOutput(y=y_TO, reports={"moe": report})
    return CompetitiveObjective(Competitive(error=error))(output, Batch(d_TO, d_TO, valid_T))


def gradients(error: Error, d_TO: Tensor, o_TEO: Tensor, a_TE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Error, and its gradients by autograd for outputs and gate logits."""
    o_TEO, a_TE = o_TEO.detach().requires_grad_(), a_TE.detach().requires_grad_()
    total = competitive_loss(error, d_TO, o_TEO, a_TE).total
    do, da = torch.autograd.grad(total, [o_TEO, a_TE])
    return total.detach(), do, da


def sample(T: int, E: int, outputs: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (T, outputs), (T, E, outputs), (T, E)
    d, o, a = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return d, o, a


CASES = (st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**16))


@pytest.mark.parametrize("error", ERRORS)
@given(*CASES)
@settings(max_examples=25, deadline=None)
def test_gradients_equal_those_derived_by_hand(error: Error, T: int, E: int, outputs: int, seed: int) -> None:
    d, o, a = sample(T, E, outputs, seed)
    total, do, da = gradients(error, d, o, a)
    expected = [DERIVED[error](d[t], o[t], a[t]) for t in range(T)]
    torch.testing.assert_close(total, sum(e for e, _, _ in expected), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(do, torch.stack([g for _, g, _ in expected]), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(da, torch.stack([g for _, _, g in expected]), rtol=1e-11, atol=1e-12)


# computed by hand for d = 1, o = (.5, 0), p = (.6, .4), to six decimals
@pytest.mark.parametrize(
    ("error", "value", "do_1"),
    [("cooperative", 0.49, -0.84), ("competitive", 0.55, -0.6), ("likelihood", 0.258628, -0.342890)],
)
def test_competitive_errors_of_one_case_by_their_numbers(error: Error, value: float, do_1: float) -> None:
    d, o = torch.tensor([[1.0]]).double(), torch.tensor([[[0.5], [0.0]]]).double()
    a = torch.tensor([[0.6, 0.4]]).double().log()
    total, do, da = gradients(error, d, o, a)
    assert total.item() == pytest.approx(value, abs=5e-7)
    assert do[0, 0, 0].item() == pytest.approx(do_1, abs=5e-7)
    if error == "likelihood":
        assert do[0, 1, 0].item() == pytest.approx(-0.314220, abs=5e-7)  # = -h_2 (1 - 0)
        assert da[0, 0].item() == pytest.approx(-0.085780, abs=5e-7)  # = p_1 - h_1, h_1 = .685780


@given(*CASES)
@settings(max_examples=20, deadline=None)
def test_competitive_errors_satisfy_the_papers_identities(T: int, E: int, outputs: int, seed: int) -> None:
    d, o, a = sample(T, E, outputs, seed)
    value = {error: gradients(error, d, o, a)[0] for error in ERRORS}
    _, _, da = gradients("likelihood", d, o, a)
    torch.testing.assert_close(da.sum(-1), torch.zeros(T).double(), rtol=0, atol=1e-13)  # (b)
    assert value["cooperative"] <= value["competitive"] + 1e-12  # (e), Jensen
    if E == 1:  # (c)
        torch.testing.assert_close(value["cooperative"], value["competitive"], rtol=1e-12, atol=0)
        torch.testing.assert_close(value["cooperative"], 2 * value["likelihood"], rtol=1e-12, atol=1e-14)
    same = o[:, :1].expand(T, E, outputs)  # (d): equal experts share a case in proportion to their gates
    torch.testing.assert_close(
        gradients("cooperative", d, same, a)[0], gradients("competitive", d, same, a)[0], rtol=1e-12, atol=0
    )
    torch.testing.assert_close(gradients("likelihood", d, same, a)[2], torch.zeros(T, E).double(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_likelihood_is_finite_far_from_the_target_and_under_vanished_gates(dtype: torch.dtype) -> None:
    d, o = torch.zeros(1, 1, dtype=dtype), torch.tensor([[[100.0], [101.0], [0.0]]], dtype=dtype)
    far = torch.tensor([[0.0, 0.0, -5000.0]], dtype=dtype)  # the good expert's gate is exactly 0
    total, do, da = gradients("likelihood", d, o, far)
    assert all(t.isfinite().all() for t in (total, do, da))
    near = torch.tensor([[0.0, -1.0]], dtype=dtype)
    total, do, da = gradients("likelihood", d, o[:, :2], near)
    assert total.item() == pytest.approx(5000 - near.softmax(-1)[0, 0].log().item(), rel=1e-6)
    torch.testing.assert_close(do[0, 0], torch.tensor([100.0], dtype=dtype))  # h = (1, 0)


def test_the_best_expert_moves_most_under_likelihood_and_least_under_competition() -> None:
    d = torch.zeros(1, 1).double()
    o = torch.tensor([[[1.0], [2.0], [3.0]]]).double()  # the first is nearest
    equal = torch.zeros(1, 3).double()
    pull = {error: gradients(error, d, o, equal)[1].abs().flatten() for error in ERRORS}
    assert pull["competitive"].argmin() == 0
    assert pull["likelihood"].argmax() == 0
    assert pull["cooperative"].max() == pull["cooperative"].min()
