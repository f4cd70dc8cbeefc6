"""Search by results: Optuna proposes the points of a sweep, and tells which trials are worse than most.

Nothing of Optuna is stored. The results of a sweep are in its runs, and each question makes a study of them anew, in
memory, with the number of the point as its seed. So the same results give the same points, and a sweep that was killed
goes on as if it had not been. ``points.json`` holds the points so far, each with the number of earlier points whose
results it waited for: its trials are compared with those of the same, whenever they are resumed.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from moekit.errors import CheckpointError, MoekitError
from moekit.files import read_regular, replace_text
from moekit.training.metrics import headline
from moekit_report.comparison import points as curve_of
from moekit_report.sweeping import LARGEST, Options, Range, Sweep, Trial, planned
from moekit_report.trials import run_of

POINTS = "points.json"
STARTUP = 4
"""Trials that must be complete before another is ended early."""
WARMUP = 4
"""No trial ends in the first of so many parts of its steps."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of a guided sweep.

    Attributes:
        options: as overrides.
        knows: how many earlier points were complete when it began, the first ones.
    """

    options: Options
    knows: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a point, or a trial, came to.

    Attributes:
        options: as overrides.
        value: the last of the main metric on validation data; the mean over seeds.
        curve: the same by step.
        is_pruned: whether it ended early.
    """

    options: Options
    value: float
    curve: Mapping[int, float]
    is_pruned: bool


def read_points(folder: Path) -> list[Point]:
    """The points of a guided sweep so far.

    Raises:
        MoekitError: the file is damaged.
    """
    path = folder / POINTS
    try:
        found = json.loads(read_regular(path, LARGEST))
        return [Point(options=tuple(each["options"]), knows=int(each["knows"])) for each in found]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MoekitError(
            f"{path} is damaged: {error}\n  delete it: points are proposed again, and runs found"
        ) from error


def guided(folder: Path, sweep: Sweep, jobs: int, is_settled: Callable[[Trial], bool]) -> Iterator[Trial | None]:
    """The trials of a sweep whose points or ends depend on results, point by point; None while one waits for results.

    A point waits for all but the ``jobs - 1`` before it. So what it knows, and what follows from it, is the same
    however fast the trials are.

    Args:
        folder: of the sweep.
        sweep: what is to be run.
        jobs: processes at a time.
        is_settled: whether a trial is complete or has failed.

    Raises:
        MoekitError: optuna is not installed, or the file of points is damaged.
    """
    optuna()
    points, known = read_points(folder), sweep.points()
    for number in range(sweep.sample if sweep.search == "tpe" else len(known)):
        knows = points[number].knows if number < len(points) else max(0, number + 1 - jobs)
        while not all(is_settled(trial) for point in points[:knows] for trial in of_seeds(point, sweep)):
            yield None
        if number == len(points):
            results = [found for point in points[:knows] if (found := result_of(folder, point, sweep)) is not None]
            waiting = [point.options for point in points[knows:]]
            options = (
                known[number] if known else propose(sweep, results, waiting, _lower_is_better(folder, points, sweep))
            )
            points.append(Point(options=options, knows=knows))
            replace_text(folder / POINTS, json.dumps([asdict(point) for point in points], indent=1) + "\n")
        yield from of_seeds(points[number], sweep)


def of_seeds(point: Point, sweep: Sweep) -> list[Trial]:
    """The trials of a point."""
    return [Trial(options=point.options, seed=seed) for seed in range(sweep.seeds)]


def result_of(folder: Path, point: Point, sweep: Sweep) -> Result | None:
    """The result of a point over its seeds; None if no trial of it is complete with a finite value."""
    found = [each for trial in of_seeds(point, sweep) if (each := of_trial(folder, trial)) is not None]
    if not found:
        return None
    steps = set.intersection(*(set(each.curve) for each in found))
    return Result(
        options=point.options,
        value=math.fsum(each.value for each in found) / len(found),
        curve={step: math.fsum(each.curve[step] for each in found) / len(found) for step in sorted(steps)},
        is_pruned=any(each.is_pruned for each in found),
    )


def of_trial(folder: Path, trial: Trial) -> Result | None:
    """The result of a trial; None unless it is complete with a finite value."""
    run = run_of(folder, trial)
    if run is None or not run.is_complete or not run.metrics:
        return None
    metric, _ = headline(run.recipe, set(run.metrics))
    steps, values = curve_of(run, f"val/{metric}", "step")
    if not values or not math.isfinite(values[-1]):
        return None
    is_pruned = run.outcome["stopped_after"] is None and run.outcome["steps"] < run.recipe.trainer.max_steps
    curve = {int(step): value for step, value in zip(steps, values, strict=True) if math.isfinite(value)}
    return Result(options=trial.options, value=values[-1], curve=curve, is_pruned=is_pruned)


def _lower_is_better(folder: Path, points: Sequence[Point], sweep: Sweep) -> bool:
    runs = (run_of(folder, trial) for point in points for trial in of_seeds(point, sweep))
    first = next((run for run in runs if run is not None and run.metrics), None)
    return True if first is None else headline(first.recipe, set(first.metrics))[1].lower_is_better


def optuna() -> Any:
    """The package.

    Raises:
        MoekitError: it is not installed.
    """
    try:
        import optuna as found
    except ModuleNotFoundError as error:
        raise MoekitError("--tpe and --prune need the package optuna: pip install 'moekit[optuna]'") from error
    return found


@contextmanager
def _quiet(package: Any) -> Iterator[None]:
    """Without Optuna's lines on the console, and its warnings that an argument may change."""
    level = package.logging.get_verbosity()
    package.logging.set_verbosity(package.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", package.exceptions.ExperimentalWarning)
            yield
    finally:
        package.logging.set_verbosity(level)


def propose(
    sweep: Sweep, results: Sequence[Result], waiting: Sequence[Options] = (), lower_is_better: bool = True
) -> Options:
    """The next point, by Optuna's tree-structured Parzen estimator (Bergstra et al. 2011).

    Args:
        sweep: its axes.
        results: of earlier points.
        waiting: points whose results are not known yet.
        lower_is_better: of the values.

    Raises:
        MoekitError: optuna is not installed.
    """
    package = optuna()
    axes: dict[str, Any] = {}
    ranges = {key: found for key, values in sweep.grid if (found := Range.of(values[0])) is not None}
    for key, values in sweep.grid:
        each = ranges.get(key)
        if each is None:
            axes[key] = package.distributions.CategoricalDistribution(list(values))
        elif each.is_whole:
            axes[key] = package.distributions.IntDistribution(int(each.low), int(each.high), log=each.is_logarithmic)
        else:
            axes[key] = package.distributions.FloatDistribution(each.low, each.high, log=each.is_logarithmic)

    def params(options: Options) -> dict[str, Any]:
        texts = dict(option.split("=", 1) for option in options)
        return {key: _number(ranges[key], text) if key in ranges else text for key, text in texts.items()}

    states, make = package.trial.TrialState, package.trial.create_trial
    number = len(results) + len(waiting)
    with _quiet(package):
        sampler = package.samplers.TPESampler(seed=number, constant_liar=True)
        study = package.create_study(sampler=sampler, direction="minimize" if lower_is_better else "maximize")
        for result in results:
            state = states.PRUNED if result.is_pruned else states.COMPLETE
            chosen = params(result.options)
            study.add_trial(
                make(
                    params=chosen,
                    distributions=axes,
                    state=state,
                    value=result.value,
                    intermediate_values=dict(result.curve),
                )
            )
        for options in waiting:
            study.add_trial(make(params=params(options), distributions=axes, state=states.RUNNING))
        found = study.ask(axes).params
    return tuple(f"{key}={ranges[key].text(found[key]) if key in ranges else found[key]}" for key in axes)


def _number(of: Range, text: str) -> float | int:
    return int(text) if of.is_whole else float(text)


def is_worse_than_most(
    curve: Mapping[int, float], others: Sequence[Result], *, max_steps: int, lower_is_better: bool
) -> bool:
    """Whether the best value of a trial so far is worse than the median of others at its step (Golovin et al. 2017).

    Args:
        curve: the trial's values by step.
        others: results of complete trials.
        max_steps: of each.
        lower_is_better: of the values.

    Raises:
        MoekitError: optuna is not installed.
    """
    if not curve or max(curve) >= max_steps:
        return False
    package = optuna()
    states, make = package.trial.TrialState, package.trial.create_trial
    with _quiet(package):
        pruner = package.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=max_steps // WARMUP)
        study = package.create_study(pruner=pruner, direction="minimize" if lower_is_better else "maximize")
        for result in others:
            state = states.PRUNED if result.is_pruned else states.COMPLETE
            study.add_trial(make(state=state, value=result.value, intermediate_values=dict(result.curve)))
        trial = make(state=states.RUNNING, intermediate_values=dict(curve))
        return bool(pruner.prune(study, trial))


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
                return EndIfHopeless(found, lower_is_better=_lower_is_better(folder.parent.parent, points, sweep))
    return None
