"""Next- and multi-token prediction against loops over places, in fp64: loss, gradients, lambda's turn, exact match."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.contracts import Batch, ModelOutput, Source
from moekit_objectives.causal_lm import CausalLM, naive
from moekit_objectives.causal_lm.module import CausalLMObjective


@given(st.integers(1, 3), st.integers(2, 5), st.integers(0, 2), st.floats(0, 1), st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_loss_and_gradients_before_and_after_lambdas_turn(
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
    weight = naive.weight_at(progress * 14.8, early=0.3, late=0.1, turn=10.0)
    expected = naive.mean_loss(tokens_BT, [z.softmax(-1) for z in logits], weight)
    mean = found.total / found.count
    torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-12)
    for a, b in zip(torch.autograd.grad(mean, logits), torch.autograd.grad(expected, logits), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_deepseek_v3_trains_10_of_14_8_trillion_tokens_with_the_larger_lambda() -> None:
    spec = CausalLM(mtp_late_weight=0.1)
    assert [spec.weight_at(tokens / 14.8) for tokens in (0.0, 9.99, 10.01, 14.8)] == [0.3, 0.3, 0.1, 0.1]
    assert CausalLM().weight_at(1.0) == 0.3  # no turn unless one is asked for
    assert CausalLM(mtp_late_weight=0.0, mtp_late_from=0.5).weight_at(0.5) == 0.0


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**16))
@settings(max_examples=50, deadline=None)
def test_exact_match(B: int, S: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_BSV = torch.randint(3, (B, S, 3), generator=generator).double()  # ties, and sequences that are right
    targets_BS, valid_BS = torch.randint(2, (2, B, S), generator=generator)
    batch = Batch(targets_BS, targets_BS, valid_BS.bool(), source=Source(torch.zeros(B, 7, dtype=torch.int64)))
    right, asked = CausalLMObjective(CausalLM(exact=True))(ModelOutput(y=logits_BSV), batch).metrics["exact"]
    assert (int(right), int(asked)) == naive.exact(logits_BSV.softmax(-1), targets_BS, valid_BS)


def test_exact_match_is_logged_where_asked_alone() -> None:
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    assert (
        "exact" not in CausalLMObjective(CausalLM())(ModelOutput(y=torch.zeros(1, 2, 3)), Batch(tokens, tokens)).metrics
    )


def test_a_share_beyond_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mtp_late_from=10.0 is out of range \(>= 0 and <= 1\)"):
        CausalLM(mtp_late_from=10.0)
