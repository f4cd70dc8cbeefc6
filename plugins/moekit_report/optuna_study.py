"""What Optuna says of results: the next point of a sweep, and whether a trial is worse than most.

Nothing of Optuna is stored. The results of a sweep are in its runs, and each question makes a study of them anew, in
memory, with the number of the point as its seed. So the same results give the same points.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from moekit.errors import MoekitError
from moekit_report.axes import Range
from moekit_report.sweeping import Options, Sweep

STARTUP = 4
"""Trials that must be complete before another is ended early."""
WARMUP = 4
"""No trial ends in the first of so many parts of its steps."""


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
