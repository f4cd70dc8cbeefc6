"""``ema`` and ``swa``: what the averages are, what validations and checkpoints hold, and an exact resumption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from rich.console import Console
from torch import nn

from moekit import SpecError, load
from moekit.checkpoints.reading import open_checkpoint
from moekit.training.module import LitMoE
from moekit.training.run.folder import RunFolder
from moekit.training.run.parts import build_parts, check_callbacks
from moekit.training.run.train import train
from moekit_lightning.averages import EMA, SWA
from moekit_lightning.averages.module import TRAINED, WeightAverage, aliases, ema, swa

Make = Callable[..., dict[str, Any]]


def averaged(callback: WeightAverage, weights: list[float], max_steps: int = 4) -> float:
    module = nn.Linear(1, 1, bias=False)
    for step, weight in enumerate(weights, start=1):
        nn.init.constant_(module.weight, weight)
        trainer = cast(Any, SimpleNamespace(global_step=step, max_steps=max_steps))
        for _ in range(2):  # two micro-batches of a step
            callback.on_train_batch_end(trainer, cast(Any, module), None, None, 0)
    return float(callback.averages["weight"])


def test_the_averages_are_those_of_the_formulas() -> None:
    assert averaged(ema(EMA(decay=0.5)), [1.0, 3.0, 5.0]) == ((1 + 3) / 2 + 5) / 2
    assert averaged(ema(EMA(decay=0.5, every=2)), [9.0, 1.0, 9.0, 3.0]) == 2.0
    assert averaged(swa(SWA(start=0.5)), [9.0, 9.0, 1.0, 3.0]) == 2.0
    assert averaged(swa(SWA(start=0.0)), [1.0, 2.0, 6.0]) == pytest.approx(3.0)


def test_weights_in_half_precision_are_averaged_in_fp32() -> None:
    module = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    callback = ema(EMA())
    callback.update(dict(module.named_parameters()))
    assert callback.averages["weight"].dtype == torch.float32


def test_tied_weights_are_found() -> None:
    module = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    module["b"].weight = module["a"].weight
    assert aliases(module) == [("b.weight", "a.weight")]


def test_a_run_has_one_average() -> None:
    """Two would both take the place of the weights: they share the key of their states, and are rejected by it."""
    recipe = load("jacobs1991", ["trainer.callbacks={a: ema, b: swa}"])
    with pytest.raises(SpecError, match=r"key of trainer\.callbacks\.a in checkpoints: WeightAverage\n"):
        check_callbacks(build_parts(recipe, "callback"))


def run(tree: dict[str, Any], root: Path, resume: RunFolder | None = None) -> tuple[RunFolder, LitMoE]:
    modules: list[LitMoE] = []

    class Keep(WeightAverage):
        def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
            super().on_fit_end(trainer, pl_module)
            modules.append(pl_module)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moekit_lightning.averages.module.WeightAverage", Keep)
        outcome = train(load(tree), root=root, resume=resume, console=Console(quiet=True))
    assert outcome is not None
    return RunFolder(outcome.folder), modules[0]


def whole(folder: RunFolder) -> dict[str, Any]:
    return dict(open_checkpoint(folder.checkpoint()).whole())


@pytest.mark.usefixtures("quiet_lightning")
@pytest.mark.parametrize("node", [{"use": "ema", "decay": 0.5}, {"use": "swa", "start": 0.0}], ids=["ema", "swa"])
def test_a_resumed_run_equals_an_uninterrupted_one(node: dict[str, Any], recipe: Make, tmp_path: Path) -> None:
    def tree(steps: int) -> dict[str, Any]:
        trainer = {"accelerator": "cpu", "val_check_interval": 2, "enable_progress_bar": False, "max_steps": steps}
        return recipe(schedule=None, trainer={**trainer, "callbacks": {"mean": node}})

    through, module = run(tree(6), tmp_path / "through")
    first, _ = run(tree(4), tmp_path / "parts")
    resumed, _ = run(tree(6), tmp_path / "parts", first)
    expected, found = whole(through), whole(resumed)
    for key in ("state_dict", TRAINED):
        assert expected[key].keys() == found[key].keys()
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0)
    assert found["callbacks"] == expected["callbacks"]
    trained, averages = expected[TRAINED], expected["state_dict"]
    assert any(not torch.equal(trained[name], averages[name]) for name in trained)
    state = LitMoE.load_from_checkpoint(through.checkpoint()).state_dict()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0)
