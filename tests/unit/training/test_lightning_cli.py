"""``LightningCLI(LitMoE)``: a recipe in Lightning's YAML, overrides, ``fit``, ``validate`` and help. Extra: test."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jsonargparse")
from lightning.pytorch.cli import LightningCLI

from moekit import load
from moekit.training import LitMoE

TOP = Path(__file__).parents[3]
EXAMPLE, PAGE = TOP / "examples" / "lightning_cli", TOP / "docs" / "your_own_lightning_module.md"
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
pytestmark = [
    pytest.mark.usefixtures("quiet_lightning"),
    pytest.mark.filterwarnings("ignore:::lightning"),
    pytest.mark.filterwarnings("ignore:.*litlogger"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cli(*args: str) -> LitMoE:
    made: Any = LightningCLI(LitMoE, args=[*args], run=False)
    assert isinstance(made.model, LitMoE)
    return made.model


def test_a_recipe_is_named_or_extended_and_its_options_are_set_on_the_command_line(folder: Path) -> None:
    config = folder / "c.yaml"
    config.write_text("model: {spec: jacobs1991, overrides: [seed=7, optimizer.lr=0.25]}")
    mapping = folder / "m.yaml"
    mapping.write_text("model: {spec: {extends: jacobs1991, seed: 7, optimizer: {lr: 0.25}}}")
    over = load("jacobs1991", ["seed=7", "optimizer.lr=0.25"])
    assert cli("--model.spec=jacobs1991").recipe == load("jacobs1991")
    assert cli(f"--config={config}").recipe == over
    assert cli(f"--config={mapping}").recipe == over
    assert cli(f"--config={mapping}", "--model.spec=jacobs1991").recipe == load("jacobs1991")
    changed = cli(f"--config={config}", "--model.overrides+=optimizer.lr=0.5", "--model.overrides+=stop={below: 0.1}")
    assert changed.recipe == load(over, ["optimizer.lr=0.5", "stop.below=0.1"])
    assert cli("--model.spec.extends=jacobs1991", "--model.spec.seed=3").recipe == load("jacobs1991", ["seed=3"])
    assert cli("--model.spec=[jacobs1991, {seed: 3}]").recipe == load("jacobs1991", ["seed=3"])


def test_the_example_on_the_page_trains_validates_and_can_be_repeated(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in ("train.py", "fit.yaml"):
        text = (EXAMPLE / name).read_text(encoding="utf-8")
        assert f"\n{text}```" in page, f"{name} of {EXAMPLE} and of {PAGE.name} differ"
        (folder / name).write_text(text, encoding="utf-8")

    def run(*args: str) -> str:
        monkeypatch.setattr(sys, "argv", ["train.py", *args, *QUIET])
        runpy.run_path("train.py", run_name="__main__")
        return capsys.readouterr().out

    run("fit", "--config=fit.yaml", "--model.overrides=[optimizer.lr=1e-2]")
    best = folder / "checkpoints" / "best.ckpt"
    saved = LitMoE.load_from_checkpoint(best)
    assert saved.recipe == load(cli("--config=fit.yaml").recipe, ["optimizer.lr=0.01"])
    (config,) = folder.glob("lightning_logs/version_0/config.yaml")
    assert "base/language_model" in config.read_text()
    validated = run("validate", f"--config={config}", f"--ckpt_path={best}")
    assert re.search(r"val/loss\W+[2-5]\.\d", validated), validated


def test_help_names_the_argument_and_its_forms(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        LightningCLI(LitMoE, args=["fit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Trains a recipe" in text
    assert "--model.overrides" in text and "path.to.option=value" in text
    assert "--model.spec SPEC" in text and "what ``moekit.load`` takes: a recipe, its name, a file, a mapping" in text


def test_a_mistake_in_the_recipe_is_reported_as_everywhere(folder: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'lr'"):
        cli("--model.spec=jacobs1991", "--model.overrides=[optimizer.lrr=3]")
