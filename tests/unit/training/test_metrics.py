"""Metrics: sums over micro-batches and ranks; MaxVio of each layer's load over a whole validation set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_forked
from training_helpers import report, trainer

from moekit import (
    LayerReport,
    LossSum,
    LossTerm,
    MoELayer,
    Soft,
)
from moekit.contracts.run import NOT_LEARNT, Batch
from moekit.training import LitMoE
from moekit.training.balance import max_violation
from moekit.training.metrics import Meter, Validation, balance_sum, ratios

Tree = dict[str, Any]
RANK = Path(__file__).with_name("metrics_rank.py")


def soft() -> LayerReport:
    scores = torch.rand(3, 2)
    routing = Soft(logits_TE=scores, scores_TE=scores, combine_TEP=scores[:, :, None])
    return LayerReport(routing=routing, dropped=torch.tensor(0))


def loss(total: float, count: float) -> LossSum:
    return LossSum(total=torch.tensor(total), count=torch.tensor(count))


def test_validation_maxvio_is_of_the_summed_load_and_averaged_over_layers() -> None:
    """Layer a: MaxVio 1 in each batch, 0 together. Layer b: loads (6, 1, 1, 0) together, (6 - 2) / 2."""
    validation = Validation()
    validation.add(loss(2.0, 1.0), {"a": report([0] * 2 + [1] * 2), "b": report([0] * 4)})
    validation.add(loss(3.0, 4.0), {"a": report([2] * 2 + [3] * 2), "b": report([0, 0, 1, 2])})
    values = validation.take()
    assert values["val/max_violation"] == pytest.approx((0 + 2) / 2)
    assert values["val/loss"] == 1.0
    assert validation.take() == {}


def test_validation_allows_layers_with_different_numbers_of_experts() -> None:
    validation = Validation()
    validation.add(loss(1.0, 1.0), {"a": report([0], E=2), "b": report([0, 1, 2], E=3)})
    assert validation.take()["val/max_violation"] == pytest.approx(0.5)


def test_there_is_no_maxvio_without_sparse_layers() -> None:
    validation = Validation()
    validation.add(loss(1.0, 2.0), {"soft": soft()})
    assert validation.take() == {"val/objective": 0.5, "val/loss": 0.5}
    validation.add(loss(1.0, 2.0), {"soft": soft(), "a": report([0], E=4)})
    assert validation.take()["val/max_violation"] == pytest.approx(3)


def test_validation_on_two_ranks_equals_one_rank_with_all_batches(tmp_path: Path) -> None:
    """With two batches on each rank, and with one on rank 0 and three on rank 1."""
    out = str(tmp_path / "rank")
    run_forked(RANK, 2, out)
    for rank in range(2):
        alone, even, uneven, nothing = torch.load(f"{out}{rank}")
        assert alone == even == uneven
        assert alone == {"val/objective": 1.0, "val/loss": 1.0, "val/max_violation": 1.0}
        assert nothing == {}


@pytest.mark.usefixtures("quiet_lightning")
def test_the_logged_maxvio_is_that_of_the_whole_validation_set(recipe: Callable[..., Tree]) -> None:
    module, t = LitMoE(recipe()), trainer(3)
    t.fit(module)
    assert module.data is not None
    layer = next(m for m in module.modules() if isinstance(m, MoELayer))
    loads = []
    module.eval()
    with torch.no_grad():
        for batch in module.data.validation_batches():
            loads += [r.load_E for r in module(batch.inputs, batch.valid).reports.values()]
    assert len(loads) > 1
    assert layer.experts.num_experts == loads[0].numel()
    expected = max_violation(torch.stack(loads).sum(0)).item()
    assert expected > 0
    assert float(t.callback_metrics["val/max_violation"]) == pytest.approx(expected)


def test_a_meter_divides_the_sums_by_the_summed_denominators() -> None:
    meter = Meter()
    meter.add({"loss": (torch.tensor(6.0), torch.tensor(2))})
    meter.add({"loss": (torch.tensor(1.0), torch.tensor(5)), "bytes": (torch.tensor(3.0), torch.tensor(4))})
    assert ratios(meter.take(), "train/") == {"train/loss": 1.0, "train/bytes": 0.75}
    assert meter.take() == {} and ratios({}, "train/") == {}


def test_balance_sum_weights_an_encoders_loss_by_the_targets_tokens() -> None:
    one, two = ({"load": LossTerm(value=torch.tensor(value), weight=0.1)} for value in (1.0, 2.0))
    reports = {"encoder": report([0] * 40, losses=one), "decoder": report([0] * 10, losses=two)}
    total = balance_sum(reports, {"encoder": torch.tensor(10)})
    assert total is not None
    torch.testing.assert_close(total / 10, torch.tensor(0.1 * (1.0 + 2.0)))


def test_a_balance_loss_weighs_the_same_however_few_tokens_have_a_target() -> None:
    losses = {"load": LossTerm(value=torch.tensor(2.0), weight=0.1)}
    targets = torch.full((1, 40), NOT_LEARNT)
    targets[0, 30:] = 1
    share = Batch(torch.zeros_like(targets), targets).learnt_share()
    total = balance_sum({"layer": report([0] * 40, losses=losses)}, learnt=share)
    assert total is not None
    torch.testing.assert_close(total / 10, torch.tensor(0.2))  # the objective divides by the 10 tokens with a target


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_tokens_of_a_balance_loss_are_not_rounded_to_the_default_dtype(dtype: torch.dtype) -> None:
    """Lightning makes bf16 or fp16 the default in a step under ``bf16-true`` and ``16-true``."""
    targets = torch.ones(1, 70_100, dtype=torch.int64)
    valid = torch.arange(70_100)[None] >= 37
    targets[0, :50] = NOT_LEARNT
    losses = {"load": LossTerm(value=torch.tensor(2.0), weight=0.1)}
    routed = report([0] * 70_063, losses=losses)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        total = balance_sum({"layer": routed}, learnt=Batch(torch.zeros_like(targets), targets, valid).learnt_share())
    finally:
        torch.set_default_dtype(before)
    assert total is not None
    torch.testing.assert_close(total, torch.tensor(0.2 * 70_050))
