"""Next-token prediction: sums, padding, multi-token terms, bits per byte, precision."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moekit.contracts import Batch, LossSum, ModelOutput
from moekit_objectives.causal_lm import CausalLM
from moekit_objectives.causal_lm.module import CausalLMObjective


def loss(logits: Tensor, batch: Batch, *future: Tensor, weight: float = 0.3) -> LossSum:
    return CausalLMObjective(CausalLM(mtp_weight=weight))(ModelOutput(y=logits, future=future), batch)


def batch_of(B: int = 2, S: int = 5, V: int = 4, valid: Tensor | None = None, num_bytes: int | None = None) -> Batch:
    tokens = torch.randint(V, (B, S + 1))
    return Batch(tokens[:, :-1], tokens[:, 1:], valid, None if num_bytes is None else torch.tensor(num_bytes))


def test_uniform_logits_cost_log_v_nats_and_two_bits_a_byte() -> None:
    out = loss(torch.zeros(2, 5, 4), batch_of(num_bytes=10))
    nats, count = out.metrics["loss"]
    bits, num_bytes = out.metrics["bits_per_byte"]
    assert (nats / count).item() == pytest.approx(math.log(4))
    assert (bits / num_bytes).item() == pytest.approx(2.0)


def test_without_a_byte_count_there_is_no_bits_per_byte() -> None:
    assert set(loss(torch.zeros(2, 5, 4), batch_of()).metrics) == {"loss"}


def test_padding_counts_nowhere_and_gets_no_gradient() -> None:
    valid = torch.tensor([[True] * 5, [True, True, False, False, False]])
    batch, logits = batch_of(valid=valid), torch.randn(2, 5, 4, requires_grad=True)
    future = torch.randn(2, 4, 4, requires_grad=True)
    out = loss(logits, batch, future)
    out.total.backward()
    assert out.count == 7
    expected = F.cross_entropy(logits[valid], batch.targets[valid], reduction="sum")
    # the token two places on of position i exists where the target at i + 1 is valid
    expected = expected + 0.3 * F.cross_entropy(
        future[valid[:, 1:]], batch.targets[:, 1:][valid[:, 1:]], reduction="sum"
    )
    torch.testing.assert_close(out.total, expected)
    assert logits.grad is not None and (logits.grad[~valid] == 0).all() and (logits.grad[valid] != 0).all()
    assert future.grad is not None and (future.grad[~valid[:, 1:]] == 0).all()


def test_a_later_token_counts_only_within_its_document() -> None:
    batch, zero = batch_of(B=1, num_bytes=10), torch.zeros(1, 5, 4)
    batch = batch._replace(document=torch.tensor([[0, 0, 1, 1, 1]]))
    out = loss(zero, batch, zero[:, :4], zero[:, :3], weight=0.5)
    assert out.count == 5
    # pairs of tokens of one document that are 1 apart: 3; 2 apart: 1
    assert (out.total / out.count).item() == pytest.approx(math.log(4) * (1 + 0.5 / 2 * (3 / 5 + 1 / 5)))


def test_multi_token_terms_are_averaged_over_depths_and_divided_by_all_tokens() -> None:
    batch, zero = batch_of(num_bytes=10), torch.zeros(2, 5, 4)
    out = loss(zero, batch, zero[:, :4], zero[:, :3], weight=0.5)
    # T = 5: L_k = log 4 (T - k)/T
    expected = math.log(4) * (1 + 0.5 / 2 * (4 / 5 + 3 / 5))
    assert (out.total / out.count).item() == pytest.approx(expected)
    nats, count = out.metrics["loss"]
    assert (nats / count).item() == pytest.approx(math.log(4))  # metrics are of the next token alone
    bits, num_bytes = out.metrics["bits_per_byte"]
    assert (bits / num_bytes).item() == pytest.approx(2.0)


def test_with_weight_0_later_tokens_get_no_gradient() -> None:
    batch, future = batch_of(), torch.randn(2, 4, 4, requires_grad=True)
    loss(torch.randn(2, 5, 4, requires_grad=True), batch, future, weight=0.0).total.backward()
    assert future.grad is None


def test_bf16_logits_are_scored_in_fp32() -> None:
    batch, logits = batch_of(V=300), torch.randn(2, 5, 300).bfloat16()
    out = loss(logits, batch)
    assert out.total.dtype == torch.float32
    torch.testing.assert_close(out.total, loss(logits.float(), batch).total, rtol=0, atol=0)


def test_a_batch_without_valid_targets_has_loss_0_and_no_gradient() -> None:
    logits = torch.randn(2, 5, 4, requires_grad=True)
    out = loss(logits, batch_of(valid=torch.zeros(2, 5, dtype=torch.bool)))
    out.total.backward()
    assert out.total == 0 and out.count == 0
    assert logits.grad is not None and not logits.grad.any()


def test_the_z_loss_is_minimised_but_not_reported_and_pulls_logits_of_valid_positions_to_0() -> None:
    valid = torch.tensor([[True] * 5, [True, True, False, False, False]])
    batch = batch_of(valid=valid)
    logits = torch.full((2, 5, 4), 3.0, requires_grad=True)  # logsumexp = 3 + log 4; shifting all changes no p
    output = ModelOutput(y=logits)
    plain, both = (CausalLMObjective(CausalLM(z_loss=w))(output, batch) for w in (0.0, 1e-4))
    assert ((both.total - plain.total) / both.count).item() == pytest.approx(1e-4 * (3 + math.log(4)) ** 2, rel=1e-3)
    assert both.metrics["loss"][0] == plain.metrics["loss"][0] == plain.total.detach()
    (both.total - plain.total).backward()
    assert logits.grad is not None and (logits.grad[valid] > 0).all() and (logits.grad[~valid] == 0).all()


def test_padding_that_holds_nan_adds_no_z_loss() -> None:
    valid = torch.tensor([[True, True, False]])
    logits = torch.randn(1, 3, 4)
    logits[0, 2] = torch.nan
    batch = batch_of(B=1, S=3, valid=valid)
    total = CausalLMObjective(CausalLM(z_loss=1.0))(ModelOutput(y=logits), batch).total
    assert total.isfinite()
