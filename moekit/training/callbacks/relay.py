"""A callback that calls the hook ``moekit_step_ended`` of plugins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from moekit.plugin import Plugin
from moekit.registry import current
from moekit.training.run.events import EndedStep, RunInfo
from moekit.training.run.parts import check_states

HOOK = "moekit_step_ended"


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
        if any(plugin.name not in self._off for plugin, _ in registry.hooks(HOOK)):
            ended = EndedStep(
                **asdict(self.run),
                module=pl_module,
                step=step,
                metrics=pl_module.logged,
                logged=pl_module.logged_step == step,
            )
            registry.call(HOOK, {"run": ended}, failed=self._switch_off, without=self._off)

    def _switch_off(self, plugin: Plugin, error: Exception) -> None:
        self._off.add(plugin.name)
        self.report(
            f"\nplugin '{plugin.name}', hook {HOOK}: {type(error).__name__}: {error}\n"
            "  training continues without this hook"
        )
