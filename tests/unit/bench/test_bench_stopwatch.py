"""The parts of a training step: what a thread does during it is none of them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from moekit import load
from moekit.contracts import Batch
from moekit.training.data import StepLoader
from moekit.training.run.prepare import quiet
from moekit_bench.measure import Clock, Settings
from moekit_bench.step import RecipeRunner
from moekit_data.text import TextData


class Times(threading.local):
    """Each thread has a time of its own."""

    now = 0.0


@pytest.mark.parametrize("ahead", [False, True])
def test_data_is_what_training_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool) -> None:
    times = Times()

    def sample(self: TextData, generator: torch.Generator) -> Batch:
        times.now += 1
        return self.partial_batch(generator, 1.0)

    def work(*args: object) -> None:
        times.now += 2

    monkeypatch.setattr(TextData, "train_batch", sample)
    monkeypatch.setattr(Clock, "mark", lambda self: times.now)
    monkeypatch.setattr(StepLoader, "ahead", property(lambda self: ahead, lambda self, value: None))
    small = ["model.dim=16", "model.ffn.hidden=16", "model.depth=1", "model.attention.head_dim=8", "data.seq=16"]
    runner = RecipeRunner("a", load("base/language_model", [*small, "data.megabytes=0.05"]), Settings(), tmp_path)
    runner.module.model.register_forward_pre_hook(work)
    with quiet():
        runner.round(counts=True)
    assert [(step["data"], step["forward"]) for step in runner.steps] == [(0 if ahead else 1, 2)] * len(runner.steps)
    assert runner.steps
