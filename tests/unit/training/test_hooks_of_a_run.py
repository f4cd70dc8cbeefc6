"""The five life-cycle hooks: when they are called, with what, and what an exception in one does."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fake_plugins import module
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from rich.console import Console

from moekit import SpecError, load
from moekit.hookspecs import hookimpl
from moekit.registry import current, temporary
from moekit.training.callbacks.checkpoint import SaveCheckpoints
from moekit.training.run.folder import RunFolder
from moekit.training.run.hooks import EndedRun, EndedStep, HookRelay, ReportRow, StartingRun
from moekit.training.run.train import train

Make = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.usefixtures("quiet_lightning")


class Doubled(Callback):
    """Publishes twice the step."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        pl_module.publish({"train/doubled": 2 * trainer.global_step})


def plugin(name: str, **hooks: Callable[..., Any]) -> ModuleType:
    made = module(name)
    for hook, function in hooks.items():
        setattr(made, f"moekit_{hook}", hookimpl(function))
    return made


def tiny(recipe: Make, **trainer: Any) -> dict[str, Any]:
    options = {"max_steps": 4, "accelerator": "cpu", "val_check_interval": 2, "enable_progress_bar": False}
    return recipe(trainer={**options, **trainer})


def run(tree: dict[str, Any], root: Path) -> tuple[str, RunFolder]:
    """Trains; returns what was printed, and the folder."""
    console = Console(record=True, width=200, file=io.StringIO())
    try:
        train(load(tree), root=root, console=console)
    finally:
        folders = list((root / "tiny").iterdir()) if (root / "tiny").exists() else [root]
    return console.export_text(), RunFolder(folders[0])


def test_every_hook_is_called_once_and_in_order(recipe: Make, tmp_path: Path) -> None:
    seen: list[Any] = []

    def recipe_loaded(recipe: Any) -> None:
        seen.append(("loaded", recipe.name))

    def module_built(module: Any) -> None:
        seen.append(("built", module.is_built, module.logged_step))

    def run_starting(run: StartingRun) -> None:
        seen.append(("starting", run.name, run.recipe.name, run.upto, (run.folder / "spec.yaml").exists()))
        run.callbacks.append(Doubled())

    def step_ended(run: EndedStep) -> None:
        seen.append((run.step, run.logged, run.metrics["train/loss"] > 0))

    def run_ended(run: EndedRun) -> list[ReportRow | Path]:
        seen.append(("ended", run.step, run.failure, sorted(run.rows), run.rows[4]["train/doubled"]))
        return [ReportRow("energy", "3 kWh"), run.folder / "energy.svg"]

    named = (recipe_loaded, module_built, run_starting, step_ended, run_ended)
    hooks: dict[str, Callable[..., Any]] = {hook.__name__: hook for hook in named}
    with temporary(plugin("acme", **hooks)):
        text, folder = run(tiny(recipe), tmp_path)
    assert seen == [
        ("loaded", "tiny"), ("starting", "tiny", "tiny", 0, False), ("built", True, 0),
        *((step, True, True) for step in (1, 2, 3, 4)), ("ended", 4, None, [1, 2, 3, 4], 8.0),
    ]  # fmt: skip
    assert "energy" in text and "3 kWh" in text
    summary = json.loads(folder.summary.read_text())
    assert summary["reported"] == {"energy": "3 kWh"}
    assert [Path(file).name for file in summary["files"]] == ["energy.svg", "loss.png", "load.png"]
    assert "energy.svg  loss.png  load.png" in text
    assert list(json.loads(folder.hooks.read_text())["acme"]["hooks"]) == sorted(f"moekit_{hook}" for hook in hooks)


def test_a_run_without_hooks_names_none(recipe: Make, tmp_path: Path) -> None:
    assert current().hooks("moekit_step_ended") == []
    _, folder = run(tiny(recipe), tmp_path)
    assert folder.spec.exists() and not folder.hooks.exists()


def test_callbacks_of_hooks_come_after_those_of_the_recipe(recipe: Make, tmp_path: Path) -> None:
    found: list[type] = []

    class Look(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            found.extend(type(callback) for callback in trainer.callbacks)

    tree = tiny(recipe, callbacks={"mine": {"class": "test_hooks_of_a_run.Doubled"}})
    with temporary(plugin("acme", run_starting=lambda run: run.callbacks.append(Look()))):
        run(tree, tmp_path)
    expected = [Doubled, Look, HookRelay, SaveCheckpoints]
    assert [each for each in found if each in expected] == expected


def test_conflicts_that_a_hook_finds_are_those_of_load(recipe: Make) -> None:
    def recipe_loaded(recipe: Any) -> Iterator[str]:
        if recipe.seed == 3:
            yield "seed 3 brings bad luck"

    with temporary(plugin("acme", recipe_loaded=recipe_loaded)):
        load(tiny(recipe))
        with pytest.raises(SpecError, match=r"^seed 3 brings bad luck \(plugin 'acme'\)$"):
            load(tiny(recipe), ["seed=3"])


def bad(*args: Any) -> None:
    raise RuntimeError("no luck")


@pytest.mark.parametrize(
    ("hook", "failing"),
    [
        ("recipe_loaded", lambda recipe: bad()), ("module_built", lambda module: bad()),
        ("run_starting", lambda run: bad()),
    ],
)  # fmt: skip
def test_an_exception_in_a_hook_that_may_veto_names_plugin_and_hook(
    hook: str, failing: Callable[..., Any], recipe: Make, tmp_path: Path
) -> None:
    with (
        temporary(plugin("acme", **{hook: failing})),
        pytest.raises(RuntimeError, match="no luck") as caught,
    ):
        run(tiny(recipe), tmp_path)
    assert f"in hook moekit_{hook} of plugin 'acme' (acme)" in caught.value.__notes__
    assert hook == "module_built" or not (tmp_path / "tiny").exists()


def test_an_exception_in_an_observer_harms_no_run(recipe: Make, tmp_path: Path) -> None:
    """It is reported once; the same hook of other plugins is called as before."""
    steps: list[int] = []
    with temporary(
        plugin("aaa", step_ended=lambda run: bad(), run_ended=lambda run: bad()),
        plugin("zzz", step_ended=lambda run: steps.append(run.step), run_ended=lambda run: [ReportRow("steps", "4")]),
    ):
        text, folder = run(tiny(recipe), tmp_path)
    assert text.count("plugin 'aaa', hook moekit_step_ended: RuntimeError: no luck") == 1
    assert text.count("plugin 'aaa', hook moekit_run_ended: RuntimeError: no luck") == 1
    assert steps == [1, 2, 3, 4]
    assert json.loads(folder.summary.read_text())["reported"] == {"steps": "4"}


def test_what_is_not_a_row_is_reported(recipe: Make, tmp_path: Path) -> None:
    with temporary(plugin("acme", run_ended=lambda run: ["steps"])):
        text, _ = run(tiny(recipe), tmp_path)
    expected = "expected a list of ReportRow, or of the paths of files"
    assert f"plugin 'acme', hook moekit_run_ended: TypeError: {expected}, got 'steps'" in text


def test_a_failed_run_is_reported_too(recipe: Make, tmp_path: Path) -> None:
    failures: list[Any] = []

    class Fail(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if trainer.global_step == 3:
                raise ZeroDivisionError("in the middle")

    def run_ended(run: EndedRun) -> list[ReportRow]:
        failures.append((run.step, type(run.failure)))
        return [ReportRow("energy", "2 kWh")]

    console = Console(record=True, width=200, file=io.StringIO())
    with (
        temporary(plugin("acme", run_starting=lambda run: run.callbacks.append(Fail()), run_ended=run_ended)),
        pytest.raises(ZeroDivisionError, match="in the middle"),
    ):
        train(load(tiny(recipe)), root=tmp_path, console=console)
    assert failures == [(3, ZeroDivisionError)] and "energy: 2 kWh" in console.export_text()


def test_a_hook_cannot_append_a_callback_that_cannot_work(recipe: Make, tmp_path: Path) -> None:
    said = "ModelCheckpoint has no place in a run(.|\n)*at callback 1 of hook moekit_run_starting"
    with (
        temporary(plugin("acme", run_starting=lambda run: run.callbacks.append(ModelCheckpoint()))),
        pytest.raises(SpecError, match=said),
    ):
        run(tiny(recipe), tmp_path)
    assert not (tmp_path / "tiny").exists()


def test_hooks_are_called_by_plugin_and_first_or_last_where_they_say(recipe: Make) -> None:
    order: list[str] = []

    def one(name: str, **options: Any) -> ModuleType:
        made = module(name)
        made.moekit_recipe_loaded = hookimpl(lambda recipe: order.append(name), **options)  # type: ignore[attr-defined]
        return made

    with temporary(one("c"), one("a", trylast=True), one("b"), one("z", tryfirst=True)):
        load(tiny(recipe))
    assert order == ["z", "b", "c", "a"]
