"""A sweep: what is to be run of one recipe, over values and ranges of options and over seeds.

Everything that a sweep knows is in its folder: ``sweep.json`` says what is to be run, each trial is an ordinary run in
a folder of its own, and a trial is complete once its run has written its results. So the same command continues a sweep
wherever it was ended, and folders that were copied from other machines count.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from moekit.errors import MoekitError
from moekit.files import read_regular, write_if_changed
from moekit.run import Run
from moekit.training.run.folder import RunFolder, started
from moekit_report.axes import Range, split

PLAN = "sweep.json"
LARGEST = 1 << 24  # bytes of a plan that are read
Options = tuple[str, ...]
"""A point of a sweep: a value of each axis, as overrides."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is to be run.

    Attributes:
        recipe: its name, or a file.
        overrides: of every trial.
        grid: the axes: options with their values, as text; a range is one value.
        seeds: seeds 0 to seeds - 1.
        sample: how many points to take; 0 for the whole grid.
        search: how points are taken: ``grid``, ``random``, or ``tpe``: proposed by Optuna from earlier results.
        prune: whether trials that are worse than most end early.
    """

    recipe: str
    overrides: tuple[str, ...]
    grid: tuple[tuple[str, tuple[str, ...]], ...]
    seeds: int
    sample: int = 0
    search: str = "grid"
    prune: bool = False

    @property
    def is_guided(self) -> bool:
        """Whether what is run depends on results."""
        return self.prune or self.search == "tpe"

    def points(self) -> list[Options]:
        """All points; none for ``tpe``, whose points depend on results."""
        if self.search == "tpe":
            return []
        keys = [key for key, _ in self.grid]
        ranges = {key: found for key, values in self.grid if (found := Range.of(values[0])) is not None}
        generator = random.Random(0)
        if ranges:
            sampled: dict[tuple[str, ...], None] = {}
            for _ in range(100 * self.sample):
                point = [
                    ranges[key].draw(generator) if key in ranges else generator.choice(values)
                    for key, values in self.grid
                ]
                sampled[tuple(point)] = None
                if len(sampled) == self.sample:
                    break
            points = list(sampled)
        else:
            points = list(product(*(values for _, values in self.grid)))
            if self.sample:
                points = sorted(generator.sample(points, min(self.sample, len(points))), key=points.index)
        return [tuple(f"{key}={value}" for key, value in zip(keys, point, strict=True)) for point in points]

    def trials(self) -> list[Trial]:
        """Every trial of ``points``, seed by seed, so that a sweep that is ended has whole seeds."""
        points = self.points()
        return [Trial(options=options, seed=seed) for seed in range(self.seeds) for options in points]

    def examples(self) -> list[Options]:
        """Points that together have every value of every axis: both ends of ranges."""
        if self.search != "tpe":
            return self.points()
        ends = {
            key: values if (found := Range.of(values[0])) is None else (found.text(found.low), found.text(found.high))
            for key, values in self.grid
        }
        first = {key: values[0] for key, values in ends.items()}
        chosen = [first | {key: value} for key, values in ends.items() for value in values]
        return list(dict.fromkeys(tuple(f"{k}={v}" for k, v in point.items()) for point in chosen))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep: its point of the grid, as overrides, and its seed."""

    options: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder: ``top_k=4,lr=0.01,seed=0``."""
        short = [
            option.partition("=")[0].rpartition(".")[2] + "=" + option.partition("=")[2] for option in self.options
        ]
        return re.sub(r"[^\w.=,+-]", "_", ",".join([*short, f"seed={self.seed}"]))


def parse(
    recipe: str, given: Sequence[str], *, seeds: int, sample: int = 0, tpe: int = 0, prune: bool = False
) -> Sweep:
    """A sweep from the arguments of a command: ``key=a,b,c`` and ``key=low..high`` are axes, ``key=a`` is for all.

    A comma inside brackets or braces does not divide.

    Args:
        recipe: its name, or a file.
        given: the arguments.
        seeds: how many.
        sample: how many points to take at random.
        tpe: how many points Optuna proposes.
        prune: whether trials that are worse than most end early.

    Raises:
        MoekitError: an argument has no ``=``, there is no axis and only one seed, two trials would share a name, a
            grid has a range, or a number is out of range.
    """
    if seeds < 1 or sample < 0 or tpe < 0:
        raise MoekitError(
            f"--seeds {seeds}, --random {sample}, --tpe {tpe}: expected 1 seed or more, and 0 points or more"
        )
    if sample and tpe:
        raise MoekitError("--random and --tpe exclude each other\n  expected one of the two")
    grid, fixed = [], []
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise MoekitError(f"'{text}' is not an option\n  expected key=value, or key=a,b,c for an axis of the grid")
        values = split(value)
        if len(values) > 1 and (inner := next((each for each in values if Range.of(each)), "")):
            raise MoekitError(f"'{text}' has the range {inner} among values\n  expected one range, or values alone")
        if len(values) > 1 or Range.of(value):
            grid.append((key, tuple(dict.fromkeys(values))))
        else:
            fixed.append(text)
    if any(key == "seed" for key, _ in grid) or any(text.startswith("seed=") for text in fixed):
        raise MoekitError("a sweep counts seeds itself\n  expected --seeds N instead of seed=...")
    if (ranges := [key for key, values in grid if Range.of(values[0])]) and not (sample or tpe):
        raise MoekitError(f"{ranges[0]} has a range, of which no grid is made\n  expected --random N or --tpe N")
    if tpe and not grid:
        raise MoekitError("--tpe has nothing to search\n  expected key=a,b,c or key=low..high")
    sweep = Sweep(
        recipe=recipe, overrides=tuple(fixed), grid=tuple(grid), seeds=seeds, sample=sample or tpe,
        search="tpe" if tpe else "random" if sample else "grid", prune=prune,
    )  # fmt: skip
    trials = [Trial(options=options, seed=seed) for options in sweep.examples() for seed in range(seeds)]
    if len(trials) < 2:
        raise MoekitError("the sweep has one run\n  expected key=a,b,c for an axis of the grid, or --seeds 3")
    if len({trial.name for trial in trials}) < len(trials):
        raise MoekitError("two runs of the sweep would have the same name\n  expected options whose last names differ")
    return sweep


def plan(folder: Path, sweep: Sweep) -> None:
    """Writes what is to be run; or checks that it is what the folder has.

    Raises:
        MoekitError: the folder has another sweep.
    """
    path, text = folder / PLAN, json.dumps(asdict(sweep), indent=1) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise MoekitError(
            f"{folder} has another sweep\n  see {path}; expected the same arguments, or another folder: --name NAME"
        )
    write_if_changed(path, text)


def planned(folder: Path) -> Sweep | None:
    """The sweep of a folder; None if it has none.

    Raises:
        MoekitError: its plan is damaged.
    """
    path = folder / PLAN
    try:
        found = json.loads(read_regular(path, LARGEST))
        grid = tuple((key, tuple(values)) for key, values in found.pop("grid"))
        return Sweep(**{**found, "overrides": tuple(found["overrides"]), "grid": grid})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MoekitError(
            f"{path} is damaged: {error}\n  delete it, and give the command of the sweep again"
        ) from error


def run_of(folder: Path, trial: Trial) -> Run | None:
    """The latest run of a trial; None before it has begun."""
    found = [spec.parent for spec in (folder / trial.name).glob("*/spec.yaml")]
    return Run(RunFolder(max(found, key=started))) if found else None


def is_complete(run: Run | None) -> bool:
    """Whether a trial has its results."""
    return run is not None and run.is_complete
