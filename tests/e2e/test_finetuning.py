"""Pre-training by span corruption, then fine-tuning on labels, by the commands that a user types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from moekit.checkpoints.reading import open_checkpoint
from moekit.cli import main
from moekit.training.run.folder import RunFolder

RECIPE = """\
schema: 1
model:
  use: encoder_decoder
  vocab: ${data.vocab}
  dim: 16
  depth: 2
  attention: {use: relative, heads: 2, head_dim: 8}
  cross: {heads: 2, head_dim: 8}
  ffn: {use: glu, hidden: 16}
  moe:
    at: {every: 2}
    router: {use: topk, top_k: 2}
    experts: {use: glu, count: 4, hidden: 8}
    dispatcher: {use: capacity, factor: 1.25}
    balancers:
      even: {use: load_balance, weight: 0.01}
objective: {use: causal_lm, exact: true}
data:
  use: span_corruption
  text: {use: text_files, path: TEXT, seq: 16, batch: 4, validation: 0.3, validation_windows: 4}
optimizer: {use: adafactor}
schedule: {use: inverse_sqrt, warmup: 2}
trainer: {max_steps: 4, accelerator: cpu, log_every_n_steps: 1, enable_progress_bar: false}
"""
TUNE = """\
schema: 1
extends: pre.yaml
data: {use: labelled_text, text: {use: text_files, path: TEXT, seq: 16, batch: 4, validation: 0.3}}
evaluators: {accuracy: {use: accuracy}}
start: {run: pre, freeze: [experts, router]}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both recipes, their text, and a run of each."""
    root = tmp_path_factory.mktemp("finetuning")
    for domain, words in (("animals", "a quick brown fox and a lazy dog "), ("numbers", "12 345 6789 0 1 22 ")):
        (root / "text" / domain).mkdir(parents=True)
        for i in range(5):
            (root / "text" / domain / f"{i}.txt").write_text(f"{i} " + words * 10)
    (root / "pre.yaml").write_text(RECIPE.replace("TEXT", str(root / "text")))
    (root / "tune.yaml").write_text(TUNE.replace("TEXT", str(root / "text")))
    assert main(["train", str(root / "pre.yaml"), "--out", str(root / "runs")]) == 0
    assert main(["train", str(root / "tune.yaml"), "--out", str(root / "runs")]) == 0
    return root


def folder(root: Path, name: str) -> Path:
    (found,) = (root / "runs" / name).iterdir()
    return found


def checkpoint(root: Path, name: str) -> dict[str, Any]:
    contents: dict[str, Any] = open_checkpoint(folder(root, name) / "checkpoints" / "last").whole()
    return contents


def test_fine_tuning_freezes_experts_and_routers_and_updates_all_else(root: Path) -> None:
    before, after = (checkpoint(root, name)["state_dict"] for name in ("pre", "tune"))
    kept = {name for name in before if ".ffn.experts." in name or ".ffn.router." in name}
    assert kept and {name for name in before if torch.equal(before[name], after[name])} == kept


def test_the_run_records_its_start_its_parameters_and_its_accuracy(root: Path) -> None:
    first = RunFolder(folder(root, "pre")).last
    assert first is not None and f"run: {first.as_posix()}" in (folder(root, "tune") / "spec.yaml").read_text()
    pre, tune = (json.loads((folder(root, name) / "summary.json").read_text()) for name in ("pre", "tune"))
    assert (tune["total"], tune["active"]) == (pre["total"], pre["active"])  # frozen parameters are parameters
    scores = tune["scores"]
    assert scores["guessing"] == 0.5 and scores["scored_windows"] >= 8 and 0 <= scores["accuracy"] <= 1


def test_a_fine_tuned_run_resumes_and_generates_without_the_pretrained_run(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = folder(root, "pre") / "checkpoints"
    away = first.rename(first.with_name("away"))
    try:
        assert main(["train", "--resume", str(folder(root, "tune")), "trainer.max_steps=5"]) == 0
        assert checkpoint(root, "tune")["global_step"] == 5
        assert main(["generate", str(folder(root, "tune")), "a lazy dog", "--tokens", "3"]) == 0
    finally:
        away.rename(first)
    before, after = (checkpoint(root, name)["state_dict"] for name in ("pre", "tune"))
    assert torch.equal(*(s["model.encoder.blocks.1.ffn.router.weight_ED"] for s in (before, after)))
    capsys.readouterr()


def test_a_run_of_another_model_is_refused_before_anything_is_written(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = root / "refused"
    run = f"start.run={folder(root, 'pre').as_posix()}"
    assert main(["train", str(root / "tune.yaml"), run, "model.moe.experts.count=8", "--out", str(runs)]) == 2
    error = capsys.readouterr().err
    assert "its weights are not those of this model" in error and "moe" not in error.partition("\n")[0]
    assert "encoder.blocks.1.ffn.router.weight_ED [4, 16] there, [8, 16] here" in error
    assert not runs.exists()
    assert main(["train", str(root / "tune.yaml"), "start.run=nothing", "--out", str(runs)]) == 2
    assert "no run at 'nothing'" in capsys.readouterr().err
