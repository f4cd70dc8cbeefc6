"""Mistakes in a training step that no other test noticed: each was made in moekit, and the suite stayed green."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moekit.training.module import LitMoE

Make = Callable[..., dict[str, Any]]


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, of: int = 10) -> None:
    """Training steps find a trainer that has so many steps behind it."""
    trainer = SimpleNamespace(
        accumulate_grad_batches=1, world_size=1, global_step=step, max_steps=of, log_every_n_steps=1
    )
    monkeypatch.setattr(LitMoE, "trainer", trainer)


def test_an_encoders_losses_weigh_as_much_as_the_decoders(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer's mean is weighted by the targets that the objective counts, though a source is longer."""
    options = recipe()["model"]
    moe = {**options["moe"], "balancers": {"load": {"use": "load_balance", "weight": 0.5}}}
    moe["router"] = {"use": "topk", "top_k": 2}
    model = {
        **{key: options[key] for key in ("dim", "depth", "ffn")},
        "use": "encoder_decoder",
        "vocab": 320,
        "attention": {"use": "relative", "heads": 2, "head_dim": 8},
        "cross": {"heads": 2, "head_dim": 8},
        "moe": moe,
    }
    text = recipe()["data"]
    module = LitMoE(recipe(model=model, data={"use": "span_corruption", "text": {**text, "seq": 64}, "vocab": 320}))
    batch = module.prepare().train_batch(torch.Generator().manual_seed(0))
    assert batch.source is not None and batch.source.valid is not None and batch.valid is not None
    assert batch.source.valid.sum() > 2 * batch.valid.sum()
    output = module.model.on(batch)
    loss = module.objective(output, batch)
    assert {name.partition(".")[0] for name in output.reports} == {"encoder", "decoder"}
    expected = loss.total + loss.count * sum(report.loss() for report in output.reports.values())
    at_step(monkeypatch, 0)
    torch.testing.assert_close(module.training_step(batch, 0), expected)


def test_lambda_falls_where_the_run_says(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The objective hears how far the run is: multi-token prediction weighs less late in training."""
    objective = {"use": "causal_lm", "mtp_weight": 0.3, "mtp_late_weight": 0.1, "mtp_late_from": 0.5}
    module = LitMoE(recipe(model={**recipe()["model"], "mtp": {"depth": 1}}, objective=objective))
    batch = module.prepare().train_batch(torch.Generator().manual_seed(0))
    output = module.model.on(batch)
    early, late = (module.objective(output, batch, progress=share).total for share in (0.4, 0.5))
    assert early > late
    for step, expected in ((4, early), (5, late)):
        at_step(monkeypatch, step)
        torch.testing.assert_close(module.training_step(batch, 0), expected)
