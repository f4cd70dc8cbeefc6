"""Ranks whose gloo threads hardly run end as any others: nothing aborts when Python ends before those threads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from ranks import run_ranks

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from tiny_runs import prepare

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="priorities of threads are Linux's"),
]
BUSY = "40"  # s, longer than the steps take
ROUNDS = 6  # two of five ended by SIGABRT while Python ended before gloo's threads


def test_ranks_end_although_gloo_threads_are_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    options = ["trainer.strategy=ddp", "trainer.devices=2", "trainer.max_steps=4", "trainer.val_check_interval=4"]
    command = ["train", "tiny.yaml", "--no-compare", "--out", "out", "model.moe.experts.dropout=0", *options]
    script = Path(__file__).with_name("starved_rank.py")
    for n in range(ROUNDS):
        run_ranks(script, 2, BUSY, *command, f"--name={n}", "trainer.deterministic=false", timeout=600)
    assert len(list((tmp_path / "out").glob("*/*/checkpoints/step-00000004"))) == ROUNDS
