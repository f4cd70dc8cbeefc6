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
from moekit.training.module import TRAINED, LitMoE
from moekit.training.run.folder import RunFolder
from moekit.training.run.parts import build_parts, check_callbacks
from moekit.training.run.train import train
from moekit_lightning.averages import EMA, SWA
from moekit_lightning.averages.module import WeightAverage, aliases, ema, swa

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


EMA_NODE: dict[str, Any] = {"use": "ema", "decay": 0.5}
SWA_NODE: dict[str, Any] = {"use": "swa", "start": 0.0}
LIGHTNINGS: dict[str, Any] = {"class": "lightning.pytorch.callbacks.EMAWeightAveraging", "decay": 0.5}


@pytest.fixture
def train_on(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunFolder]:
    """Trains up to a step, from the start or from a run's last checkpoint, with one callback or none."""
    monkeypatch.setattr("moekit_lightning.plots.draw_plots", lambda *_: [])

    def go(steps: int, node: dict[str, Any] | None, first: RunFolder | None = None, **model: Any) -> RunFolder:
        trainer = {"accelerator": "cpu", "val_check_interval": 2, "enable_progress_bar": False, "max_steps": steps}
        tree = recipe(schedule=None, trainer={**trainer, "callbacks": {} if node is None else {"mean": node}})
        tree["model"] = {**tree["model"], **model}
        root = tmp_path / f"{steps} {node} {first is None}"
        outcome = train(load(tree), root=root, resume=first, console=Console(quiet=True))
        assert outcome is not None
        return RunFolder(outcome.folder)

    return go


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    torch.testing.assert_close(found, {name: expected[name] for name in found}, rtol=0, atol=0)


@pytest.mark.usefixtures("quiet_lightning")
@pytest.mark.parametrize(("node", "tied"), [(EMA_NODE, False), (SWA_NODE, True), (LIGHTNINGS, False)])
def test_without_the_callback_a_resumed_run_continues_from_the_trained_weights(
    node: dict[str, Any], tied: bool, train_on: Callable[..., RunFolder]
) -> None:
    """As if there had never been an average, which itself changes no training."""
    plain = whole(train_on(4, None, tied=tied))["state_dict"]
    resumed = whole(train_on(4, None, train_on(2, node, tied=tied), tied=tied))
    assert TRAINED not in resumed
    assert_equal(resumed["state_dict"], plain)


@pytest.mark.usefixtures("quiet_lightning")
@pytest.mark.parametrize(("before", "after"), [(EMA_NODE, SWA_NODE), (SWA_NODE, EMA_NODE), (LIGHTNINGS, SWA_NODE)])
def test_an_average_of_another_kind_is_dropped_and_the_trained_weights_are_kept(
    before: dict[str, Any], after: dict[str, Any], train_on: Callable[..., RunFolder], caplog: pytest.LogCaptureFixture
) -> None:
    """The new average has one update: it is the trained weights of that step."""
    plain = whole(train_on(3, None))["state_dict"]
    resumed = whole(train_on(3, after, train_on(2, before)))
    assert resumed["callbacks"]["WeightAverage"] == {"kind": after["use"], "count": 1, "step": 3}
    assert_equal(resumed[TRAINED], plain)
    assert_equal(resumed["state_dict"], plain)
    assert ("the average in the checkpoint is dropped" in caplog.text) == ("use" in before)


@pytest.mark.usefixtures("quiet_lightning")
def test_swa_begins_anew_in_a_longer_run(train_on: Callable[..., RunFolder], caplog: pytest.LogCaptureFixture) -> None:
    """At half of 4 steps, then at half of 8: step 4 is not yet in it."""
    node = {"use": "swa", "start": 0.5}
    first = train_on(4, node)
    assert whole(first)["callbacks"]["WeightAverage"]["count"] == 2
    resumed = train_on(8, node, first)
    assert whole(resumed)["callbacks"]["WeightAverage"] == {"kind": "swa", "count": 4, "step": 8}
    saved = open_checkpoint(resumed.checkpoints / "step-00000006").whole()
    assert saved["callbacks"]["WeightAverage"]["count"] == 2 and "swa begins later in this run" in caplog.text
