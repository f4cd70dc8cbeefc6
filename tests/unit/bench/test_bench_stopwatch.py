"""The parts of a training step: what a thread does during it is none of them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from moekit import load
from moekit.contracts import Batch
from moekit.training.data import StepLoader
from moekit_bench.measure import Clock, Settings
from moekit_bench.step import RecipeRunner
from moekit_data.text import TextData

SLOW = 0.1


@pytest.mark.parametrize("ahead", [False, True])
def test_data_is_what_training_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool) -> None:
    def sample(self: TextData, generator: torch.Generator) -> Batch:
        time.sleep(SLOW)
        return self.partial_batch(generator, 1.0)

    monkeypatch.setattr(TextData, "train_batch", sample)
    monkeypatch.setattr(Clock, "mark", lambda self: time.perf_counter())  # which goes on while a thread sleeps
    monkeypatch.setattr(StepLoader, "ahead", property(lambda self: ahead, lambda self, value: None))
    small = ["model.dim=16", "model.ffn.hidden=16", "model.depth=1", "model.attention.head_dim=8", "data.seq=16"]
    runner = RecipeRunner("a", load("base/language_model", [*small, "data.megabytes=0.05"]), Settings(), tmp_path)
    runner.module.model.register_forward_pre_hook(lambda *args: time.sleep(2 * SLOW))
    runner.round(counts=True)
    for step in runner.steps:
        assert step["forward"] > 2 * SLOW
        assert (step["data"] < SLOW / 2) if ahead else (step["data"] > SLOW)
