"""``moekit.train`` and ``moekit.open``: a run from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

import moekit
from moekit import CheckpointError, MoekitError, SpecError

SMALL = ["trainer.max_steps=4", "trainer.val_check_interval=2"]


class Count(Callback):
    """Counts the batches of a run, and keeps the count in checkpoints."""

    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_end(self, *given: Any) -> None:
        self.batches += 1

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batches = state["batches"]


def test_a_run_without_its_dense_baseline_is_resumed_and_started_from_without_one(tmp_path: Path) -> None:
    """``start`` excludes the dense baseline, which the recipe asks for."""
    tiny = ["model.dim=16", "model.ffn.hidden=16", "model.depth=1", "model.attention.head_dim=8", "data.megabytes=0.05"]
    small = [*tiny, "compare={}", "trainer.max_steps=1", "trainer.limit_val_batches=1", "data.batch=2", "data.seq=16"]
    first = moekit.train("base/language_model", small, out=tmp_path, compare=False, quiet=True)
    assert first.recipe.compare is None
    resumed = moekit.train(resume=first, overrides=["trainer.max_steps=2"], quiet=True)
    assert (resumed.metrics["step"][-1], resumed.dense) == (2, None)
    start = f"start.run={first.path}"
    again = moekit.train("base/language_model", [*small, start], out=tmp_path, compare=False, quiet=True)
    assert again.recipe.compare is None
    with pytest.raises(SpecError, match="start and compare are both given"):
        moekit.train("base/language_model", [*small, start], out=tmp_path, quiet=True)


def test_a_recipe_is_trained_opened_and_resumed(tmp_path: Path) -> None:
    first, second = Count(), Count()
    run = moekit.train("jacobs1991", SMALL, out=tmp_path, callbacks=[first], compare=False, quiet=True)
    assert first.batches == 4
    assert run.path.parent.parent == tmp_path
    assert run.metrics["step"][-1] == 4
    assert run.metrics["val/loss"][-1] == pytest.approx(run.outcome["validation"]["loss"])
    assert (run.tokenizer, run.dense) == (None, None)
    ema = {"ema": {"use": "ema", "decay": 0.9}}
    resumed = moekit.train(
        resume=run, overrides=["trainer.max_steps=6"], callbacks={**ema, "count": second}, compare=False, quiet=True
    )
    assert (resumed.path, second.batches) == (run.path, 6)
    assert list(resumed.recipe.trainer.callbacks) == ["ema"]
    again = moekit.open(run.path)
    assert again.recipe == resumed.recipe
    weights, others = again.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert repr(again) == f"moekit.open({run.path.as_posix()!r})"


def test_a_language_model_generates_the_same_text_for_the_same_seed(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    recipe = {
        "extends": "deepseek_v3",
        "model": {"dim": 16, "depth": 2, "moe": {"experts": {"hidden": 8}, "shared": {"hidden": 8}}},
        "data": {"use": "text_files", "path": str(tmp_path / "text.txt"), "seq": 8, "batch": 2, "tokenizer": "bytes"},
        "compare": None,
    }
    run = moekit.train(recipe, SMALL, out=tmp_path / "runs", name="tiny", quiet=True)
    one, two = (run.generate("the ", tokens=12, seed=3) for _ in range(2))
    assert one == two
    assert "".join(run.stream("the ", tokens=12, seed=3)) == one
    assert run.generate("the ", tokens=0) == ""
    for wrong in ({"tokens": -1}, {"temperature": -1.0}, {"top_p": 0.0}, {"seed": -1}):
        with pytest.raises(MoekitError, match="expected"):
            run.generate("the ", **wrong)  # type: ignore[arg-type]
    with pytest.raises(MoekitError, match="the prompt is empty"):
        run.generate("")


def test_mistakes_are_reported_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(MoekitError, match="train takes a recipe, or resume=RUN"):
        moekit.train()
    with pytest.raises(MoekitError, match="a resumed run keeps its folder: it takes no name='other'"):
        moekit.train(resume=tmp_path, name="other")
    with pytest.raises(SpecError, match="unknown callback 'emma'"):
        moekit.train("jacobs1991", out=tmp_path, callbacks={"ema": "emma"})
    with pytest.raises(CheckpointError, match="no run at 'nothing'"):
        moekit.open("nothing", out=tmp_path)
    assert list(tmp_path.iterdir()) == []
