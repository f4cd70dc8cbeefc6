"""The end of a trial that is worse than most, by a callback of Lightning that Optuna decides for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from moekit.errors import CheckpointError
from moekit.training.metrics import headline
from moekit_report.optuna_study import Result, is_worse_than_most
from moekit_report.search import lower_is_better, of_seeds, of_trial, read_points
from moekit_report.sweeping import Trial, planned


class EndIfHopeless(Callback):
    """Ends a trial of a sweep after a validation in which it is worse than most: Optuna's pruning.

    Args:
        others: results of the trials that it is compared with.
        lower_is_better: of the main metric.
    """

    def __init__(self, others: Sequence[Result], *, lower_is_better: bool = True) -> None:
        self.others = others
        self.lower_is_better = lower_is_better
        self.curve: dict[int, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """The values so far."""
        return {"steps": list(self.curve), "values": list(self.curve.values())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them.

        Raises:
            CheckpointError: the state is of another form.
        """
        try:
            self.curve = {int(s): float(v) for s, v in zip(state_dict["steps"], state_dict["values"], strict=True)}
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the state of EndIfHopeless is of another form: {error}") from error

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ends a trial that was killed after the validation that ended it."""
        self._decide(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Ends the trial if it is worse than most."""
        if trainer.sanity_checking or pl_module.validated_step != trainer.global_step:
            return
        metric, _ = headline(pl_module.recipe, set(trainer.callback_metrics))
        value = float(trainer.callback_metrics[f"val/{metric}"])
        if math.isfinite(value):
            self.curve[trainer.global_step] = value
        self._decide(trainer)

    def _decide(self, trainer: L.Trainer) -> None:
        steps, lower = trainer.max_steps, self.lower_is_better
        if is_worse_than_most(self.curve, self.others, max_steps=steps, lower_is_better=lower):
            trainer.should_stop = True


def pruning_of(folder: Path) -> EndIfHopeless | None:
    """The callback for the run of a folder, if it is a trial of a sweep that prunes.

    Raises:
        MoekitError: the sweep's plan or points are damaged.
    """
    sweep = planned(folder.parent.parent)
    if sweep is None or not sweep.prune:
        return None
    points = read_points(folder.parent.parent)
    for point in points:
        for trial in of_seeds(point, sweep):
            if trial.name == folder.parent.name:
                earlier = [Trial(options=other.options, seed=trial.seed) for other in points[: point.knows]]
                found = [result for each in earlier if (result := of_trial(folder.parent.parent, each)) is not None]
                return EndIfHopeless(found, lower_is_better=lower_is_better(folder.parent.parent, points, sweep))
    return None
