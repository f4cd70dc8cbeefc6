"""Training one model and measuring it: the usual measure of an arm. Nothing is written to the disk."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning as L
import torch

from moekit.component import imported
from moekit.contracts import Data
from moekit.machine import keep_freed_memory
from moekit.params import count_parameters
from moekit.registry import build
from moekit.spec.kinds import DataSpec, MoE
from moekit.spec.recipe import Recipe
from moekit.spec.replacing import find_all
from moekit.training.balance import max_violation
from moekit.training.data import StepLoader, ValidationShard
from moekit.training.module import LitMoE
from moekit.training.run.prepare import quiet, trainer_options
from moekit_reproduce.study import Arm

END = 0.1
"""The last part of a run, over which loads are averaged."""

Report = Callable[[str], None]


_prepared: dict[str, tuple[Data, str]] = {}


def prepared(spec: DataSpec) -> tuple[Data, str]:
    """The data of a spec, read once in this process, and the checksum of what its batches are made of.

    Raises:
        DataError: a file is missing or unreadable.
    """
    key = f"{type(spec).__module__}.{spec!r}"
    if key not in _prepared:
        data: Data = build(spec)
        data.prepare()
        _prepared[key] = data, data.fingerprint()
    return _prepared[key]


def train(recipe: Recipe, arm: Arm, seed: int, report: Report) -> dict[str, Any]:
    """Trains a recipe and returns what is measured of it.

    - ``loss`` and the objective's other metrics over the validation set; ``curve``, pairs of step and loss;
    - ``epochs``: steps until the recipe's ``stop``; if it was not reached, all steps, and ``converged`` is 0;
    - ``total`` parameters; ``work``, multiply-adds of a token by its active parameters; ``executed``, those of them
      that were executed in training, without pairs that were dropped or not sent;
    - of mixtures ``max_violation`` of a step (mean over the last tenth), ``global_violation`` over the validation set,
      and ``kept``, the share of the chosen pairs that were computed;
    - what the arm's probe adds.

    Raises:
        MoekitError: the recipe cannot be trained.
    """
    watch = Watch(recipe.trainer.max_steps, report)
    module, trainer = fit(recipe, watch, validations=arm.validations)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    values: dict[str, Any] = {name[4:]: value for name, value in logged.items() if name.startswith("val/")}
    values["curve"] = watch.curve
    if recipe.stop is not None:
        stopped = module.stopped_after
        values |= {"epochs": float(stopped or watch.steps), "converged": float(stopped is not None)}
    if watch.violations:
        values["global_violation"] = values["max_violation"]
        values["max_violation"] = watch.end_violation()
        values["kept"] = watch.kept(recipe)
    values |= work_of(recipe, values.get("kept", 1.0))
    if arm.probe:
        assert recipe.data is not None
        values |= imported(arm.probe, f"arm '{arm.name}': cannot import its probe")(module, prepared(recipe.data)[0])
    return values


def fit(
    recipe: Recipe, watch: Watch, *, validations: int = 1, before: Callable[[LitMoE], object] = lambda module: None
) -> tuple[LitMoE, L.Trainer]:
    """Trains a recipe on the CPU.

    Args:
        recipe: with data.
        watch: counts.
        validations: how many; the last is at the end.
        before: is called with the module before it is trained.

    Raises:
        MoekitError: the recipe cannot be trained.
        KeyboardInterrupt: a signal stopped the training.
    """
    assert recipe.data is not None
    data, _ = prepared(recipe.data)
    module = LitMoE(replace(recipe, data=None, evaluators={}, compare=None))
    own = {
        "accelerator": "cpu",
        "devices": 1,
        "callbacks": [watch],
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": max(1, watch.steps // 100),
        "val_check_interval": max(1, watch.steps // validations),
    }
    before(module)
    keep_freed_memory()
    with quiet():
        trainer = L.Trainer(**trainer_options(recipe) | own)
        try:
            trainer.fit(module, StepLoader(data, seed=recipe.seed), ValidationShard(data))
        except SystemExit as stopped:  # Lightning's answer to a signal, which would say nothing
            raise KeyboardInterrupt from stopped
    module.eval()
    return module, trainer


@torch.no_grad()
def validation_loss(module: LitMoE, data: Data) -> float:
    """The objective's loss over the validation set, in nats, as training logs it."""
    total, count = 0.0, 0.0
    for batch in data.validation_batches():
        loss = module.objective(module.model.on(batch), batch)
        total, count = total + float(loss.total), count + float(loss.count)
    return total / count


class Watch(L.Callback):
    """Adds up the load of every step, and keeps the validation curve.

    Args:
        steps: of the run.
        report: takes the progress.
    """

    def __init__(self, steps: int, report: Report = lambda text: None) -> None:
        self.steps = steps
        self.report = report
        self.curve: list[tuple[int, float]] = []
        self.violations: list[float] = []
        self.computed = 0
        self.tokens = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Adds the load of the last step."""
        if trainer.global_step % 10 == 0:
            self.report(f"step {trainer.global_step} of {self.steps}")
        load, layers = pl_module.step_load, pl_module.sparse_layers
        if load is None or not layers:
            return
        self.violations.append(math.fsum(float(max_violation(load.load_E[name])) for name in layers) / len(layers))
        self.computed += sum(int(load.load_E[name].sum() - load.dropped[name]) for name in layers)
        self.tokens += sum(int(load.tokens[name]) for name in layers)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Keeps the loss."""
        self.curve.append((trainer.global_step, float(trainer.callback_metrics["val/loss"])))

    def end_violation(self) -> float:
        """MaxVio of a step, averaged over the last tenth of the steps."""
        last = self.violations[-max(1, round(len(self.violations) * END)) :]
        return math.fsum(last) / len(last)

    def kept(self, recipe: Recipe) -> float:
        """Computed pairs, over K for each token and mixture layer. All layers of a recipe have one K here."""
        (active,) = {moe.router.active(moe.experts.count) for moe in find_all(recipe, MoE)}
        return self.computed / max(self.tokens * active, 1)


def work_of(recipe: Recipe, kept: float) -> dict[str, float]:
    """Parameters, and multiply-adds of a token: by active parameters without the input embedding, and as executed."""
    counted = count_parameters(recipe)
    work = counted.active("without_input")
    executed = work - (1 - kept) * counted.active_parts["routed experts"]
    return {"total": float(counted.total), "work": float(work), "executed": float(executed)}
