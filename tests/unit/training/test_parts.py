"""Callbacks, loggers and strategies of a recipe: classes by import path are checked before anything is written."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import (
    Callback,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console

from moekit import MoekitError, SpecError, load
from moekit.training.callbacks.checkpoint import SaveCheckpoints
from moekit.training.callbacks.interrupt import StopOnInterrupt
from moekit.training.module import LitMoE
from moekit.training.run.folder import RunFolder
from moekit.training.run.hooks import HookRelay, RunInfo
from moekit.training.run.metrics_log import read_metrics
from moekit.training.run.parts import (
    REFUSED,
    build_parts,
    check_callbacks,
    check_parts,
    check_states,
    left_states,
)
from moekit.training.run.prepare import Prepared, prepare
from moekit.training.run.train import train
from moekit_lightning.progress import TrainingProgress
from moekit_report.routing.module import RoutingRecorder

Make = Callable[..., dict[str, Any]]
CALLBACKS = "lightning.pytorch.callbacks"
STOPPING = {"class": f"{CALLBACKS}.EarlyStopping", "monitor": "val/loss", "stopping_threshold": -1.0}


def with_callbacks(**callbacks: Any) -> Any:
    return load("jacobs1991", [f"trainer.callbacks.{name}={{{node}}}" for name, node in callbacks.items()])


def said_about(**callbacks: Any) -> str:
    with pytest.raises(SpecError, match=r"trainer\.callbacks") as caught:
        check_parts(with_callbacks(**callbacks))
    return str(caught.value)


STOP, MINE = f"class: {CALLBACKS}.EarlyStopping", "trainer.callbacks.mine"
BASE = "lightning.pytorch.callbacks.callback.Callback"


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (f"{STOP}s, monitor: a", f"has no 'EarlyStoppings'\n  at {MINE}.class\n  did you mean '{STOP[7:]}'?"),
        ("class: no_such_package.Name", "cannot import 'no_such_package.Name': ModuleNotFoundError"),
        (
            "class: os.path.join",
            f"'os.path.join' is not a callback\n  at {MINE}.class\n  expected a subclass of {BASE}",
        ),
        ("class: lightning.pytorch.loggers.CSVLogger, save_dir: x", "is not a callback"),
        (f"{STOP}, monitr: a", f"EarlyStopping takes no 'monitr'\n  at {MINE}.monitr"),
        (f"{STOP}, monitr: a", "did you mean 'monitor'?"),
        (STOP, f"EarlyStopping needs 'monitor'\n  at {MINE}.monitor"),
        (f"{STOP}, monitor: a, strict: many", f"strict: 'many' is not true or false\n  at {MINE}.strict"),
        (f"class: {CALLBACKS}.LearningRateMonitor, logging_interval: stp", "'stp' is none of its choices"),
        (
            f"class: {CALLBACKS}.ModelCheckpoint",
            "ModelCheckpoint has no place in a run: moekit saves checkpoints itself",
        ),
        (f"class: {CALLBACKS}.StochasticWeightAveraging, swa_lrs: 0.1", "it counts epochs, of which a run has none"),
        (f"class: {CALLBACKS}.BatchSizeFinder", "it would change the recipe"),
    ],
)
def test_a_mistake_in_a_class_is_reported_with_its_path(node: str, said: str) -> None:
    assert said in said_about(mine=node)


def test_all_mistakes_come_in_one_report() -> None:
    report = said_about(a="class: no.Such", b=f"class: {CALLBACKS}.EarlyStopping, monitr: x, strict: many")
    assert report.startswith("4 problems\n")


def test_arguments_are_converted_to_plain_types() -> None:
    recipe = with_callbacks(a=f"class: {CALLBACKS}.EarlyStopping, monitor: x, min_delta: 1")
    (stopping,) = build_parts(recipe, "callback").values()
    assert isinstance(stopping, EarlyStopping) and isinstance(stopping.min_delta, float)


def test_a_class_that_rejects_its_arguments_is_a_spec_error() -> None:
    with pytest.raises(SpecError, match=r"rejects its options: .*\n  at trainer\.callbacks\.a"):
        build_parts(with_callbacks(a=f"class: {CALLBACKS}.EarlyStopping, monitor: x, mode: sideways"), "callback")


@pytest.mark.parametrize("refused", REFUSED, ids=lambda cls: cls.__name__)
def test_callbacks_that_cannot_work_are_refused_wherever_they_come_from(refused: type[Callback]) -> None:
    made = refused.__new__(refused)
    with pytest.raises(SpecError, match=f"{refused.__name__} has no place in a run: .*\n  at a hook"):
        check_callbacks({"a hook": made})
    check_callbacks({"a hook": DeviceStatsMonitor()})


def test_two_callbacks_that_share_a_state_are_refused_by_path() -> None:
    pair = {"trainer.callbacks.a": EarlyStopping("x"), "trainer.callbacks.b": EarlyStopping("x", strict=False)}
    with pytest.raises(SpecError, match=r"key of trainer\.callbacks\.a in (.|\n)*at trainer\.callbacks\.b"):
        check_callbacks(pair)
    check_callbacks(
        {"a": EarlyStopping("x"), "b": EarlyStopping("y"), "c": LearningRateMonitor(), "d": LearningRateMonitor()}
    )


class Odd(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"inner": [1, object()]}


def test_a_state_that_no_checkpoint_can_hold_is_refused() -> None:
    check_states({"a": EarlyStopping("x")})
    message = r"trainer\.callbacks\.odd: the state of Odd holds a builtins\.object at inner\.1"
    with pytest.raises(MoekitError, match=message):
        check_states({"trainer.callbacks.odd": Odd()})


def test_states_that_no_callback_has_are_listed() -> None:
    stopping = EarlyStopping("x")
    assert left_states([stopping.state_key, "Gone"], [stopping]) == ["Gone"]


def test_a_strategy_is_a_component_or_a_class(tmp_path: Path) -> None:
    assert build_parts(load("jacobs1991"), "strategy") == {}
    for given in ("ddp", "{class: lightning.pytorch.strategies.DDPStrategy, start_method: spawn}"):
        recipe = load("jacobs1991", [f"trainer.strategy={given}"])
        (strategy,) = build_parts(recipe, "strategy", recipe).values()
        assert type(strategy) is DDPStrategy


def test_a_logger_is_a_class_too(tmp_path: Path) -> None:
    given = f"trainer.logger.mine={{class: lightning.pytorch.loggers.CSVLogger, save_dir: {tmp_path}}}"
    run = RunInfo(folder=tmp_path, name="n", label="n")
    (logger,) = build_parts(load("jacobs1991", [given]), "logger", run).values()
    assert isinstance(logger, CSVLogger) and logger.save_dir == str(tmp_path)


def prepared(tree: dict[str, Any], folder: Path) -> Prepared:
    return prepare(
        load(tree), RunFolder(folder), Console(quiet=True), name="n", label="n", saved=None, allow_changes=False
    )


def options(**more: Any) -> dict[str, Any]:
    return {"max_steps": 4, "accelerator": "cpu", "val_check_interval": 2, "enable_progress_bar": False, **more}


@pytest.mark.usefixtures("quiet_lightning")
def test_callbacks_come_after_ours_and_before_checkpoints(recipe: Make, tmp_path: Path) -> None:
    given = {"b": STOPPING, "a": {"class": f"{CALLBACKS}.LearningRateMonitor"}}
    run = prepared(recipe(trainer=options(callbacks=given, enable_progress_bar=True)), tmp_path)
    found = [type(callback) for callback in run.trainer.callbacks]  # type: ignore[attr-defined]
    assert found == [
        StopOnInterrupt, EarlyStopping, LearningRateMonitor, TrainingProgress, RoutingRecorder, HookRelay,
        SaveCheckpoints,
    ]  # fmt: skip


def test_a_model_is_built_and_read_without_importing_the_classes(recipe: Make) -> None:
    """As in ``moekit.open``, ``generate`` and ``export``: the classes may not be installed where a run is read."""
    tree = recipe(trainer=options(callbacks={"gone": {"class": "no.Such"}}, logger={"gone": {"class": "no.Log"}}))
    module = LitMoE(tree)
    assert LitMoE(module.hparams["spec"]).recipe == module.recipe == load(tree)


@pytest.mark.usefixtures("quiet_lightning")
def test_a_progress_bar_takes_the_place_of_ours(recipe: Make, tmp_path: Path) -> None:
    given = {"bar": {"class": f"{CALLBACKS}.TQDMProgressBar"}}
    run = prepared(recipe(trainer=options(callbacks=given, enable_progress_bar=True)), tmp_path)
    found = [type(callback) for callback in run.trainer.callbacks]  # type: ignore[attr-defined]
    assert TQDMProgressBar in found and TrainingProgress not in found


@pytest.mark.usefixtures("quiet_lightning")
def test_nothing_is_written_when_a_class_is_wrong(recipe: Make, tmp_path: Path) -> None:
    wrong = {"bad": {"class": f"{CALLBACKS}.EarlyStopping"}, "gone": {"class": "no.Such"}}
    with pytest.raises(SpecError, match=r"^2 problems"):
        train(load(recipe(trainer=options(callbacks=wrong))), root=tmp_path, console=Console(quiet=True))
    assert not (tmp_path / "tiny").exists()


class Stateful(Callback):
    """Counts steps, and notes what it was given back."""

    restored: int | None = None
    last: Stateful

    def __init__(self) -> None:
        self.steps = 0
        type(self).last = self

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.restored = self.steps = state_dict["steps"]

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        pl_module.publish({"train/before": trainer.global_step + 1})

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        self.steps += 1
        pl_module.publish({"train/after": trainer.global_step})

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.publish({"val/seen": trainer.global_step})


class Unsavable(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"self": self}


HERE = "test_parts"


@pytest.mark.usefixtures("quiet_lightning")
def test_a_published_metric_is_logged_at_its_step(recipe: Make, tmp_path: Path) -> None:
    """Published before a step is taken, after it, and at a validation, the value is the step: columns equal rows.

    ``EarlyStopping`` reads the published metric, and stops after step 4 of 8.
    """
    stop = {**STOPPING, "monitor": "val/seen", "mode": "max", "stopping_threshold": 3.0}
    given = {"mine": {"class": f"{HERE}.Stateful"}, "stop": stop}
    outcome = train(
        load(recipe(trainer=options(callbacks=given, max_steps=8, accumulate_grad_batches=2, val_check_interval=4))),
        root=tmp_path, console=Console(quiet=True),
    )  # fmt: skip
    assert outcome is not None
    rows = read_metrics(RunFolder(outcome.folder).metrics)
    assert [row["train/before"] for row in rows.values()] == [1, 2, 3, 4] == list(rows)
    assert [step for step, row in rows.items() if row.get("val/seen") == step] == [2, 4]
    assert outcome.validation["seen"] == 4


@pytest.mark.usefixtures("quiet_lightning")
def test_states_come_back_start_fresh_or_are_reported_to_be_dropped(recipe: Make, tmp_path: Path) -> None:
    mine, stop = {"class": f"{HERE}.Stateful"}, STOPPING
    before = recipe(trainer=options(callbacks={"mine": mine, "stop": stop}))
    first = train(load(before), root=tmp_path, console=Console(quiet=True))
    assert first is not None
    console = Console(record=True, width=200, file=io.StringIO())
    more = {"mine": mine, "fresh": {**stop, "monitor": "train/loss"}}
    tree = recipe(trainer=options(callbacks=more, max_steps=6))
    train(load(tree), root=tmp_path, resume=RunFolder(first.folder), console=console)
    assert Stateful.last.restored == 4 and Stateful.last.steps == 6
    text = console.export_text()
    dropped = re.findall(r"no callback for a state in the checkpoint, which is dropped: (.*)", text)
    assert len(dropped) == 1 and dropped[0].startswith("EarlyStopping{'monitor': 'val/loss'")


@pytest.mark.usefixtures("quiet_lightning")
def test_a_state_that_cannot_be_saved_ends_the_run_before_its_first_step(recipe: Make, tmp_path: Path) -> None:
    given = {"odd": {"class": f"{HERE}.Unsavable"}, "mine": {"class": f"{HERE}.Stateful"}}
    with pytest.raises(MoekitError, match=r"trainer\.callbacks\.odd: the state of Unsavable holds"):
        train(load(recipe(trainer=options(callbacks=given))), root=tmp_path, console=Console(quiet=True))
    assert Stateful.last.steps == 0
