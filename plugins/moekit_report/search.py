"""A sweep that is guided by results: which point comes next, and what it knows of those before.

``points.json`` holds the points so far, each with the number of earlier points whose results it waited for. Its trials
are compared with those of the same, whenever they are resumed. So a kill changes nothing in what follows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from moekit.errors import MoekitError
from moekit.files import read_regular, replace_text
from moekit.training.metrics import headline
from moekit_report.comparison import points as curve_of
from moekit_report.optuna_study import Result, optuna, propose
from moekit_report.sweeping import LARGEST, Options, Sweep, Trial, run_of

POINTS = "points.json"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of a guided sweep.

    Attributes:
        options: as overrides.
        knows: how many earlier points were complete when it began, the first ones.
    """

    options: Options
    knows: int


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
                known[number] if known else propose(sweep, results, waiting, lower_is_better(folder, points, sweep))
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


def lower_is_better(folder: Path, points: Sequence[Point], sweep: Sweep) -> bool:
    """Whether the main metric of the trials is better if it is lower; True before one has logged anything."""
    runs = (run_of(folder, trial) for point in points for trial in of_seeds(point, sweep))
    first = next((run for run in runs if run is not None and run.metrics), None)
    return True if first is None else headline(first.recipe, set(first.metrics))[1].lower_is_better
