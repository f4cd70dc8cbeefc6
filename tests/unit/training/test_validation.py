"""MaxVio over a validation set: one load per layer, summed over all batches and ranks; and no balancer hears of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from ranks import run_forked
from rich.console import Console

from moekit import LayerReport, LossSum, MoELayer, Soft, TokenChoice
from moekit.training import LitMoE
from moekit.training.balance import max_violation
from moekit.training.metrics import Validation
from moekit.training.run.console import print_summary
from moekit.training.run.folder import RunFolder
from moekit.training.run.outcome import outcome_of

Tree = dict[str, Any]
RANK = Path(__file__).with_name("validation_rank.py")


def report(experts: list[int], E: int = 4) -> LayerReport:
    """What a layer says when each token chose one expert."""
    expert_TK, scores = torch.tensor(experts, dtype=torch.int64)[:, None], torch.rand(len(experts), E)
    routing = TokenChoice(logits_TE=scores, scores_TE=scores, expert_TK=expert_TK, gate_TK=torch.ones(expert_TK.shape))
    return LayerReport(routing=routing, load_E=routing.load_E(), dropped=torch.tensor(0))


def soft() -> LayerReport:
    scores = torch.rand(3, 2)
    routing = Soft(logits_TE=scores, scores_TE=scores, combine_TEP=scores[:, :, None])
    return LayerReport(routing=routing, load_E=routing.load_E(), dropped=torch.tensor(0))


def loss(total: float, count: float) -> LossSum:
    return LossSum(total=torch.tensor(total), count=torch.tensor(count))


def test_loads_are_summed_over_the_set_before_maxvio_is_taken_and_layers_averaged() -> None:
    """Layer a: MaxVio 1 in each batch, 0 together. Layer b: loads (6, 1, 1, 0) together, (6 - 2) / 2."""
    validation = Validation()
    validation.add(loss(2.0, 1.0), {"a": report([0] * 2 + [1] * 2), "b": report([0] * 4)})
    validation.add(loss(3.0, 4.0), {"a": report([2] * 2 + [3] * 2), "b": report([0, 0, 1, 2])})
    values = validation.take()
    assert values["val/max_violation"] == pytest.approx((0 + 2) / 2)
    assert values["val/loss"] == 1.0
    assert validation.take() == {}


def test_layers_may_differ_in_their_number_of_experts() -> None:
    validation = Validation()
    validation.add(loss(1.0, 1.0), {"a": report([0], E=2), "b": report([0, 1, 2], E=3)})
    assert validation.take()["val/max_violation"] == pytest.approx(0.5)


def test_without_sparse_layers_there_is_no_maxvio() -> None:
    validation = Validation()
    validation.add(loss(1.0, 2.0), {"soft": soft()})
    assert validation.take() == {"val/objective": 0.5, "val/loss": 0.5}
    validation.add(loss(1.0, 2.0), {"soft": soft(), "a": report([0], E=4)})
    assert validation.take()["val/max_violation"] == pytest.approx(3)


def test_two_ranks_equal_one_with_all_batches(tmp_path: Path) -> None:
    """Evenly dealt, and one against three."""
    out = str(tmp_path / "rank")
    run_forked(RANK, 2, out)
    for rank in range(2):
        alone, dealt, uneven, nothing = torch.load(f"{out}{rank}")
        assert alone == dealt == uneven
        assert alone == {"val/objective": 1.0, "val/loss": 1.0, "val/max_violation": 1.0}
        assert nothing == {}


def fitted(tree: Tree, **options: Any) -> tuple[LitMoE, L.Trainer]:
    module = LitMoE(tree)
    trainer = L.Trainer(
        **{  # type: ignore[arg-type]
            "max_steps": 3,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "val_check_interval": 3,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 1,
            **options,
        }
    )
    trainer.fit(module)
    return module, trainer


@pytest.mark.usefixtures("calm")
def test_validation_logs_the_maxvio_of_its_whole_set(recipe: Callable[..., Tree]) -> None:
    module, trainer = fitted(recipe())
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
    assert float(trainer.callback_metrics["val/max_violation"]) == pytest.approx(expected)


@pytest.mark.usefixtures("calm")
def test_the_closing_lines_and_the_summary_tell_it(recipe: Callable[..., Tree], tmp_path: Path) -> None:
    module, trainer = fitted(recipe())
    rows = {3: {**module.logged, **{k: float(v) for k, v in trainer.callback_metrics.items() if k[:4] == "val/"}}}
    outcome = outcome_of("tiny", RunFolder(tmp_path), module, rows)
    said = StringIO()
    print_summary(replace(outcome, files=[tmp_path / "loss.png"]), module, Console(file=said, width=120))
    value = rows[3]["val/max_violation"]
    assert outcome.validation["max_violation"] == value
    (line,) = [line for line in said.getvalue().splitlines() if "MaxVio" in line]
    assert line.endswith(f"at the end, {value:.2f} over the validation set (0 is an even load)")
    assert "max violation" not in said.getvalue()  # no second row for it
