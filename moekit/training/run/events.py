"""What the life-cycle hooks and the loggers of a run are called with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.callbacks import Callback

from moekit.spec.recipe import Recipe
from moekit.training.module import LitMoE


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """One run: a recipe's, or that of its dense baseline.

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
        callbacks: empty; the callbacks that hooks append are called after those of the recipe.
    """

    module: LitMoE
    callbacks: list[Callback]

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
