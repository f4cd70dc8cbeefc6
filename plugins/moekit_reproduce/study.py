"""A paper's claims as data: what is trained (arms), what must come out (predictions), what is plotted. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from moekit.spec.fields import Spec, option

Values = Mapping[str, Any]
"""What was measured of one model: numbers by name, and curves."""

Seen = Mapping[str, Values]
"""The same of every arm, for one seed."""

Source = tuple[Any, ...]
"""What ``moekit.load`` takes: names and mappings, each merged over the one before."""


class ClaimSpec(Spec):
    """Base of the specs of claims: the sizes of an experiment.

    ``quick`` has the options of the quick form, which shows that everything runs and says nothing about the paper.
    """

    kind: ClassVar[str] = "claim"
    quick: ClassVar[Mapping[str, Any]] = {"seeds": 2, "steps": 6, "windows": 4, "tune": False}
    seeds: int = option(3, "seeds of every arm, from 1; arms are compared seed by seed", ge=2)
    steps: int = option(300, "optimizer steps of a run", ge=1)
    windows: int = option(64, "windows of text of each domain in the validation set", ge=1)
    tune: bool = option(True, "search each arm's learning rate; false: take the middle of its rates")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One system of an experiment; it is trained with every seed.

    Attributes:
        name: in tables.
        recipe: what is trained; the engine adds the seed and the learning rate.
        rates: learning rates to search, from low to high, at equal ratios. While the best is at an end, the search
            continues beyond it, at most twice. Empty: the recipe's own rate.
        rate_of: the arm whose best rate it takes, in place of a search of its own.
        factor: multiplies the rate that was found.
        measure: import string of ``(recipe, arm, seed, report) -> Values``; ``report`` takes a word on the progress.
        probe: import string of ``(module, data) -> Values``, called with the trained ``LitMoE``; empty for none.
        validations: passes over the validation set in a run, which make its curve; the last is at the end.
    """

    name: str
    recipe: Source
    rates: tuple[float, ...] = ()
    rate_of: str = ""
    factor: float = 1.0
    measure: str = "moekit_reproduce.runs:train"
    probe: str = ""
    validations: int = 1


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the paper says must come out.

    Attributes:
        claim: in words.
        paper: the paper's own figures; "no figure" where it gives none, or we have not seen it.
        source: where they are in the paper.
        measure: what ``contrast`` computes, with its unit; more is better for the claim.
        contrast: a number for one seed.
        at_least: the claim holds if the contrast is at least this. It is half of the paper's effect, 0 if the paper has
            no figure that can be carried over, and negative where the claim is that something costs no more than that.
    """

    claim: str
    paper: str
    source: str
    measure: str
    contrast: Callable[[Seen], float]
    at_least: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One part of a plot: a value of several arms, with every seed, the mean and its interval.

    Attributes:
        value: its name in ``Values``; or ``curve``.
        title: with the unit.
        points: by the name of a series, arms with their place on the x axis; empty: every arm, each a row.
        x: what the x axis is.
        log: whether the x axis is logarithmic.
    """

    value: str
    title: str
    points: Mapping[str, Sequence[tuple[float, str]]] | None = None
    x: str = ""
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Study:
    """The small form of a paper's claims.

    Attributes:
        title: authors, year and title of the paper.
        about: the experiment in a few sentences, and what differs from the paper.
        arms: what is trained.
        predictions: what must come out.
        panels: of the plot.
        columns: values in the table of arms, with their headings.
        version: raise it when a measure or a probe changes, so that old measurements are not used.
        score: the value by which rates are chosen; the lowest is best.
        tuning_seeds: seeds for that, 0, -1, ...; none of them is measured.
        pictures: import string of ``(study, found, folder) -> list[Path]``, which draws something of its own.
    """

    title: str
    about: str
    arms: tuple[Arm, ...]
    predictions: tuple[Prediction, ...]
    panels: tuple[Panel, ...]
    columns: Mapping[str, str]
    version: int = 1
    score: str = "loss"
    tuning_seeds: int = 1
    pictures: str = ""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What an arm came to.

    Attributes:
        rate: its learning rate; None for the recipe's own.
        tried: the score of each rate of its search.
        values: what was measured, by seed.
        seconds, cpu_seconds: of all its measurements, those of the search among them.
    """

    rate: float | None
    tried: Mapping[float, float]
    values: Mapping[int, Values]
    seconds: float
    cpu_seconds: float
