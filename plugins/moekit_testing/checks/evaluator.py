"""Checks of evaluators: what they return of a small model, and that they leave it as it was."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

from moekit.contracts import Data, Evaluation, Evaluator, Model
from moekit.errors import MoekitError
from moekit.inference.evaluation import evaluate
from moekit.spec.kinds import EvaluatorSpec
from moekit_testing.assertions import require, require_same_state, state_of
from moekit_testing.case import Case, Check
from moekit_testing.fixtures.evaluation import subject


def checks(case: Case) -> Iterator[Check]:
    """The checks of an evaluator."""
    yield from (check_evaluation, check_evaluated_model_unchanged, check_evaluation_repeats)


def check_evaluation(case: Case) -> None:
    """Returns an ``Evaluation``: numbers that its spec's ``metrics`` declares, and files in the folder it was given."""
    model, data = _subject(case)
    with tempfile.TemporaryDirectory() as folder:
        found = _evaluated(case, model, data, Path(folder))
        declared = case.spec.metrics()
        for name, value in found.values.items():
            require(name in declared, found=f"value '{name}'", expected=f"one of {', '.join(declared) or 'none'}")
            require(math.isfinite(value), found=f"{name} = {value}", expected="a finite number")
        for file in found.files:
            inside = file.is_file() and file.resolve().is_relative_to(Path(folder).resolve())
            require(inside, found=f"{file}", expected="a file that exists in trained.folder")
        require(bool(found.values or found.files), found="neither values nor files", expected="one of them")


def check_evaluated_model_unchanged(case: Case) -> None:
    """Leaves the weights and buffers of the model as they are."""
    model, data = _subject(case)
    before = state_of(model)
    with tempfile.TemporaryDirectory() as folder:
        _evaluated(case, model, data, Path(folder))
    require_same_state(before, state_of(model), "evaluating")


def check_evaluation_repeats(case: Case) -> None:
    """Finds the same values of the same model again."""
    model, data = _subject(case)
    with tempfile.TemporaryDirectory() as folder:
        one, other = (dict(_evaluated(case, model, data, Path(folder)).values) for _ in range(2))
    require(one == other, found=f"{one}, then {other}", expected="the same values")


def _subject(case: Case) -> tuple[Model, Data]:
    found = subject(case.spec_as(EvaluatorSpec))
    if found is None:
        raise MoekitError("no installed data that it takes can be built without options")
    return found


def _evaluated(case: Case, model: Model, data: Data, folder: Path) -> Evaluation:
    evaluator = case.build_raw()
    require(isinstance(evaluator, Evaluator), found=type(evaluator).__name__, expected="a subclass of moekit.Evaluator")
    assert isinstance(evaluator, Evaluator)
    return evaluate({case.component.name: evaluator}, model, data, folder)
