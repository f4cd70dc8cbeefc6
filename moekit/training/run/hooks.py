"""The life-cycle hooks of a run: its start, its end, and which plugins have any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from moekit.parallel.launch import is_rank_zero
from moekit.plugin import Plugin
from moekit.registry import current
from moekit.training.callbacks.checkpoint import SaveCheckpoints
from moekit.training.callbacks.relay import HookRelay
from moekit.training.module import LitMoE
from moekit.training.run.events import EndedRun, ReportRow, RunInfo, StartingRun
from moekit.training.run.parts import check_callbacks
from moekit.training.run.prepared import Prepared


def run_starting(
    trainer: L.Trainer, info: RunInfo, module: LitMoE, given: Mapping[str, Callback], say: Callable[[str], object]
) -> None:
    """Calls ``moekit_run_starting``; adds the callbacks that plugins append, before the one that saves checkpoints.

    Args:
        trainer, info, module: of the run.
        given: the recipe's callbacks by path, which the trainer has already.
        say: prints a line.

    Raises:
        SpecError: a callback cannot work in a run, or would share a state with another.
        Exception: what a hook raised, with a note that names it.
    """
    run = StartingRun(**asdict(info), module=module, callbacks=[])
    current().call("moekit_run_starting", {"run": run})
    added = {f"callback {i + 1} of hook moekit_run_starting": each for i, each in enumerate(run.callbacks)}
    every = {**given, **added}
    check_callbacks(every)
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    last = next((i for i, each in enumerate(callbacks) if isinstance(each, SaveCheckpoints)), len(callbacks))
    callbacks[last:last] = [*run.callbacks, HookRelay(info, every, say)]


def run_ended(run: Prepared, console: Console, failure: BaseException | None = None) -> list[ReportRow]:
    """Calls ``moekit_run_ended`` on rank 0; returns the rows of all plugins. A plugin that fails is reported.

    Args:
        run: the run.
        console: for a failure of a plugin.
        failure: what ended the run; None for success.
    """
    if not is_rank_zero():
        return []

    def report(plugin: Plugin, error: Exception) -> None:
        text = f"plugin '{plugin.name}', hook moekit_run_ended: {type(error).__name__}: {error}"
        console.print(text, highlight=False, markup=False)

    step = run.trainer.global_step
    ended = EndedRun(**asdict(run.info), module=run.module, step=step, rows=run.log.rows, failure=failure)
    found: list[ReportRow] = []
    for plugin, returned in current().call("moekit_run_ended", {"run": ended}, failed=report):
        given = returned if isinstance(returned, list | tuple) else [] if returned is None else [returned]
        strays = [each for each in given if not isinstance(each, ReportRow)]
        if strays:
            report(plugin, TypeError(f"expected a list of ReportRow, got {strays[0]!r}"))
        found += [each for each in given if isinstance(each, ReportRow)]
    return found


def plugins_with_hooks() -> dict[str, Any]:
    """The plugins with life-cycle hooks: by name, the package and the names of the hooks."""
    hooked = [plugin for plugin in current().plugins if plugin.hooks]
    return {plugin.name: {"package": plugin.origin, "hooks": sorted(plugin.hooks)} for plugin in hooked}
