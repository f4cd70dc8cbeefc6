"""Skipped steps change nothing, are logged and counted; too many in a row end the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from states import different, tensors
from torch import Tensor
from training_helpers import trainer

from moekit import MoekitError, MoELayer
from moekit.training import LitMoE
from moekit.training.run.metrics_log import RunLog, read_metrics
from moekit.training.step import MAX_IN_A_ROW, Cause, NonFinitePolicy, NonFiniteStep

pytestmark = pytest.mark.usefixtures("quiet_lightning")
Make = Callable[..., dict[str, Any]]
NAN = float("nan")
OPTIMIZERS = [
    {"use": "adamw", "lr": 1e-2, "weight_decay": 0.1},
    {"use": "sgd", "lr": 1e-2, "momentum": 0.9},
    {"use": "adafactor", "weight_decay": 0.1},
]


def plant_nan(module: LitMoE, *steps: int) -> None:
    """Plants a NaN in one gradient, in steps that are counted from 1."""
    weight = next(m for m in module.modules() if isinstance(m, MoELayer)).experts.get_parameter("w_down_EOH")
    weight.register_hook(lambda grad: grad.index_fill(0, torch.tensor([3]), NAN) if at(module) in steps else grad)


def at(module: LitMoE) -> int:
    return int(module.trainer.global_step) + 1


class Snapshots(L.Callback):
    """Weights, biases, the optimizer's state and the learning rate after each step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.state: list[dict[int, Any]] = []
        self.lr: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        saved = deepcopy(trainer.optimizers[0].state_dict())
        self.weights.append(deepcopy(pl_module.state_dict()))
        self.state.append(saved["state"])
        self.lr.append(saved["param_groups"][0]["lr"])


def same(a: Any, b: Any) -> bool:
    found, expected = tensors(a), tensors(b)
    return len(found) > 0 and not different(found, expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda each: str(each["use"]))
def test_a_skipped_step_changes_only_the_schedule(recipe: Make, optimizer: dict[str, Any]) -> None:
    """Weights, decay, momenta, step counts and biases stay the same; at the first step no state is created."""
    healthy = Snapshots()
    trainer(6, limit_val_batches=0, callbacks=[healthy]).fit(LitMoE(recipe(optimizer=optimizer)))
    rates = healthy.lr
    assert len(set(rates)) > 4
    for skipped in (3, 1):
        module, seen = LitMoE(recipe(optimizer=optimizer, non_finite="skip")), Snapshots()
        start = deepcopy(module.state_dict())
        plant_nan(module, skipped)
        t = trainer(6, limit_val_batches=0, callbacks=[seen], gradient_clip_val=1.0)
        t.fit(module)
        assert t.global_step == 6 and module.skips.count == 1 and module.skips.in_a_row == 0
        assert seen.lr == rates  # the schedule continues
        if skipped == 3:
            assert same(seen.weights[1], seen.weights[2]) and same(seen.state[1], seen.state[2])
            assert not same(seen.weights[2], seen.weights[3]) and not same(seen.state[2], seen.state[3])
        else:
            assert same(start, seen.weights[0]) and not seen.state[0] and seen.state[1]
        assert all(torch.isfinite(each).all() for each in tensors(seen.weights[-1]).values())


def test_the_load_of_a_skipped_step_is_discarded(recipe: Make) -> None:
    """It is not added to that of the next step."""
    module = LitMoE(recipe(non_finite="skip"))
    plant_nan(module, 2)
    trainer(3, limit_val_batches=0).fit(module)
    assert module.step_load is not None
    assert int(module.step_load.load_E["blocks.1.ffn"].sum()) == 2 * 8 * 2  # batch, seq, top_k


def test_skipped_steps_are_logged_and_counted(recipe: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module, log = LitMoE(recipe(non_finite="skip")), RunLog(tmp_path / "metrics.csv")
    plant_nan(module, 2, 4)
    with caplog.at_level(logging.WARNING, logger="moekit.training"):
        trainer(5, limit_val_batches=0, logger=log).fit(module)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(":")[0] for line in lines] == ["step 2 skipped (1 so far)", "step 4 skipped (2 so far)"]
    assert all(line.endswith("expert 3 of blocks.1.ffn.experts (w_down_EOH)") for line in lines)
    log.save()
    rows = read_metrics(tmp_path / "metrics.csv")
    assert {step: row.get("train/skipped") for step, row in rows.items()} == {1: None, 2: 1, 3: None, 4: 2, 5: None}
    assert "train/loss" not in rows[2] and "train/loss" in rows[3]


def test_a_resumed_run_continues_the_count(recipe: Make, tmp_path: Path) -> None:
    module = LitMoE(recipe(non_finite="skip"))
    plant_nan(module, 2)
    first = trainer(3, limit_val_batches=0)
    first.fit(module)
    first.save_checkpoint(tmp_path / "three.ckpt")
    again = LitMoE(recipe(non_finite="skip"))
    plant_nan(again, 5)
    trainer(6, limit_val_batches=0).fit(again, ckpt_path=tmp_path / "three.ckpt", weights_only=True)
    assert again.skips.count == 2


def test_too_many_skips_in_a_row_end_the_run(recipe: Make) -> None:
    module = LitMoE(recipe(non_finite="skip"))
    plant_nan(module, *range(2, 2 + MAX_IN_A_ROW - 1), *range(2 + MAX_IN_A_ROW, 99))  # nine, one that is taken, ten
    t = trainer(40, limit_val_batches=0)
    with pytest.raises(MoekitError, match=f"{MAX_IN_A_ROW} steps in a row were skipped") as caught:
        t.fit(module)
    assert t.global_step == 2 * MAX_IN_A_ROW and "expert 3 of blocks.1.ffn.experts" in str(caught.value)


def test_non_finite_weights_end_the_run_at_once(recipe: Make) -> None:
    module = LitMoE(recipe(non_finite="skip"))
    module.model.get_parameter("head.weight").data[0] = NAN
    with pytest.raises(MoekitError, match="skipping steps cannot repair weights or buffers"):
        trainer(9, limit_val_batches=0).fit(module)


def test_both_policies_skip_steps_while_the_loss_scale_is_found(recipe: Make, caplog: pytest.LogCaptureFixture) -> None:
    """A scale of 2^40 makes fp16 gradients overflow, and is halved until it does not; then the run trains."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    module, seen = LitMoE(recipe()), Snapshots()
    start = deepcopy(module.state_dict())
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    with caplog.at_level(logging.WARNING, logger="moekit.training"):
        trainer(40, limit_val_batches=0, plugins=[plugin], callbacks=[seen], gradient_clip_val=1.0).fit(module)
    count = module.skips.count
    assert MAX_IN_A_ROW < count < 40 and scaler.get_scale() == 2.0 ** (40 - count)
    assert same(start, seen.weights[MAX_IN_A_ROW]) and not same(start, seen.weights[-1])
    assert len(caplog.records) == count
    assert caplog.records[0].getMessage().startswith("step 1 skipped: gradients overflow at a loss scale of 1.09")


def test_a_non_finite_loss_is_not_blamed_on_the_loss_scale(recipe: Make) -> None:
    module = LitMoE(recipe())
    module.model.get_submodule("head").register_forward_hook(lambda _, args, y: y * NAN)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**40))
    with pytest.raises(MoekitError, match="first not finite: head"):
        trainer(3, limit_val_batches=0, plugins=[plugin]).fit(module)


def test_gradients_that_overflow_at_a_scale_of_1_stop_the_run(recipe: Make) -> None:
    """A smaller scale cannot help then."""
    module = LitMoE(recipe())
    plant_nan(module, *range(99))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    t = trainer(9, limit_val_batches=0, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    with pytest.raises(MoekitError, match="the forward pass is finite, the gradients are not"):
        t.fit(module)
    assert scaler.get_scale() == 1.0 and t.global_step == 2


def test_the_policy_stops_or_counts() -> None:
    non_finite = NonFiniteStep(what="the loss is nan", cause=Cause("first not finite: head"))
    with pytest.raises(MoekitError, match="step 4: the loss is nan\n  first not finite: head\n") as caught:
        NonFinitePolicy("stop").skip(4, non_finite)
    assert str(caught.value).endswith(
        "training stopped; no weight was changed in this step; non_finite=skip skips such steps"
    )
    skips = NonFinitePolicy("skip")
    for step in range(1, MAX_IN_A_ROW):
        skips.skip(step, non_finite)
    skips.skip(50, NonFiniteStep(what="", scale=8.0))  # neither counts in the row nor ends it
    assert (skips.count, skips.in_a_row) == (MAX_IN_A_ROW, MAX_IN_A_ROW - 1)
