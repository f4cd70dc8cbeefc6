"""The life-cycle hooks of a run: what they are called with, and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import Logger
from rich.console import Console

from moekit.parallel.launch import is_rank_zero
from moekit.plugin import Plugin
from moekit.registry import current
from moekit.spec.recipe import Recipe
from moekit.training.callbacks.checkpoint import SaveCheckpoints
from moekit.training.module import LitMoE
from moekit.training.run.metrics_log import LogWrites
from moekit.training.run.parts import check_callbacks, check_states

STEP_ENDED = "moekit_step_ended"


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """One run: a recipe's, or that of its dense baseline. A logger gets this.

    Attributes:
        folder: of its files.
        name: of the run.
        label: the name, or ``dense`` for the baseline.
        upto: optimizer steps until the checkpoint that it resumes; 0 for a new run.
    """

    folder: Path
    name: str
    label: str
    upto: int = 0


@dataclass(frozen=True, kw_only=True)
class StartingRun(RunInfo):
    """A run whose data is read and that has written nothing.

    Attributes:
        module: what is trained; ``module.recipe`` is the recipe.
        given: the callbacks of the recipe and of ``train``.
        callbacks, loggers: empty; what hooks append is called after the recipe's callbacks, and before its loggers.
        console: for what it prints; silent on all ranks but 0.
        logs: writes log files; one that cannot be written is reported, and training continues.
        shows_progress: whether a progress bar is wanted: the recipe asks for one, and has none among its callbacks.
    """

    module: LitMoE
    given: Sequence[Callback]
    callbacks: list[Callback]
    loggers: list[Logger]
    console: Console
    logs: LogWrites
    shows_progress: bool

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return self.module.recipe


@dataclass(frozen=True, kw_only=True)
class EndedStep(RunInfo):
    """A run after an optimizer step.

    Attributes:
        module: what is trained.
        step: optimizer steps so far.
        metrics: the training metrics last logged, by name.
        logged: whether these are this step's.
    """

    module: LitMoE
    step: int
    metrics: Mapping[str, float]
    logged: bool


@dataclass(frozen=True, kw_only=True)
class EndedRun(RunInfo):
    """A run that has ended, whether it succeeded or not.

    Attributes:
        module: what was trained.
        step: optimizer steps so far.
        rows: every logged metric, by step and name.
        failure: what ended it; None for success.
    """

    module: LitMoE
    step: int
    rows: Mapping[int, Mapping[str, float]]
    failure: BaseException | None


@dataclass(frozen=True)
class ReportRow:
    """A row of the report at the end of a run: ``ReportRow("energy", "3.1 kWh")``."""

    name: str
    value: str


def run_starting(
    trainer: L.Trainer, info: RunInfo, module: LitMoE, given: Mapping[str, Callback], console: Console, logs: LogWrites
) -> None:
    """Calls ``moekit_run_starting``; adds what plugins append: callbacks before the one that saves checkpoints.

    Args:
        trainer, info, module: of the run.
        given: the recipe's callbacks by path, which the trainer has already.
        console, logs: for what the run prints, and for its log files.

    Raises:
        SpecError: a callback cannot work in a run, or would share a state with another.
        Exception: what a hook raised, with a note that names it.
    """
    has_bar = any(isinstance(each, ProgressBar) for each in given.values())
    run = StartingRun(
        **vars(info),
        module=module,
        given=tuple(given.values()),
        callbacks=[],
        loggers=[],
        console=console,
        logs=logs,
        shows_progress=module.recipe.trainer.enable_progress_bar and not has_bar,
    )
    current().call("moekit_run_starting", {"run": run})
    added = {f"callback {i + 1} of hook moekit_run_starting": each for i, each in enumerate(run.callbacks)}
    every = {**given, **added}
    check_callbacks(every)
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    last = next((i for i, each in enumerate(callbacks) if isinstance(each, SaveCheckpoints)), len(callbacks))
    callbacks[last:last] = [*run.callbacks, HookRelay(info, every, logs.report)]
    if not trainer.fast_dev_run:  # type: ignore[attr-defined] # which has no logs
        trainer.loggers = [*run.loggers, *trainer.loggers]  # the run's own last: it reports what cannot be written


class HookRelay(Callback):
    """Calls ``moekit_step_ended`` on rank 0 after every optimizer step. A plugin that fails is not called again.

    Args:
        run: the run.
        callbacks: those of the recipe and of hooks, whose states are checked before the first step.
        report: prints a line.
    """

    def __init__(self, run: RunInfo, callbacks: Mapping[str, Callback], report: Callable[[str], object]) -> None:
        self.run = run
        self.callbacks = callbacks
        self.report = report
        self._off: set[str] = set()
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Checks the states of callbacks: a failure at the first checkpoint would be late.

        Raises:
            MoekitError: a checkpoint could not hold one.
        """
        check_states(self.callbacks)
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Calls the hook if this batch ended a step."""
        step = trainer.global_step
        if step == self._step or not trainer.is_global_zero:
            return
        self._step = step
        registry = current()
        if any(plugin.name not in self._off for plugin, _ in registry.hooks(STEP_ENDED)):
            ended = EndedStep(
                **vars(self.run),
                module=pl_module,
                step=step,
                metrics=pl_module.logged,
                logged=pl_module.logged_step == step,
            )
            registry.call(STEP_ENDED, {"run": ended}, failed=self._switch_off, without=self._off)

    def _switch_off(self, plugin: Plugin, error: Exception) -> None:
        self._off.add(plugin.name)
        self.report(f"\n{_raised(plugin, STEP_ENDED, error)}\n  training continues without this hook")


def run_ended(run: EndedRun, say: Callable[[str], object]) -> tuple[dict[str, str], list[Path]]:
    """Calls ``moekit_run_ended`` on rank 0. A plugin that fails is reported.

    Args:
        run: the run.
        say: prints a line.

    Returns:
        The report's rows from all plugins, and the files that they wrote.
    """
    hook, rows, files = "moekit_run_ended", dict[str, str](), list[Path]()

    def report(plugin: Plugin, error: Exception) -> None:
        say(unwritten(run.folder, error) if isinstance(error, OSError) else _raised(plugin, hook, error))

    called = current().call(hook, {"run": run}, failed=report) if is_rank_zero() else []
    for plugin, returned in called:
        strays = []
        for each in returned if isinstance(returned, list | tuple) else [] if returned is None else [returned]:
            if isinstance(each, ReportRow):
                rows[each.name] = each.value
            elif isinstance(each, Path):
                files.append(each)
            else:
                strays.append(each)
        if strays:
            report(plugin, TypeError(f"expected a list of ReportRow, or of the paths of files, got {strays[0]!r}"))
    return rows, files


def _raised(plugin: Plugin, hook: str, error: Exception) -> str:
    return f"plugin '{plugin.name}', hook {hook}: {type(error).__name__}: {error}"


def unwritten(path: Path, error: OSError) -> str:
    """The message for a result that cannot be written to ``path``, or to the file that the error names.

    A disk may be full. The weights are saved by then, so that the run has not failed.
    """
    file, why = error.filename2 or error.filename or path, error.strerror or str(error)
    return f"\ncannot write {file}: {why}\n  the weights are saved; resume the run to write it"


def plugins_with_hooks() -> dict[str, Any]:
    """The plugins with life-cycle hooks: by name, the package and the names of the hooks.

    Those of moekit's own package are omitted, since every run has them.
    """
    hooked = [p for p in current().plugins if p.hooks and p.distribution != "moekit"]
    return {plugin.name: {"package": plugin.origin, "hooks": sorted(plugin.hooks)} for plugin in hooked}
