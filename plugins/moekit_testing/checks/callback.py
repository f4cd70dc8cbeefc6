"""Checks of callbacks: ``target(spec)``, a ``Callback`` of Lightning. They take part in short runs on the CPU."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from moekit.checkpoints.format import Encoded
from moekit.training.run.parts import refusal
from moekit_testing.assertions import require
from moekit_testing.case import Case, Check
from moekit_testing.fixtures import runs


def checks(case: Case) -> Iterator[Check]:
    """The checks of a callback."""
    yield from (check_callback_class, check_callback_trains, check_callback_state, check_callback_resumes)


def check_callback_class(case: Case) -> None:
    """Builds a ``Callback`` of Lightning, and none that cannot work in a run, such as one that saves checkpoints."""
    made = case.build_raw()
    require(isinstance(made, Callback), found=type(made).__name__, expected="a lightning.pytorch.callbacks.Callback")
    why = refusal(type(made))
    require(not why, found=f"a {type(made).__name__}: {why}", expected="a callback that can work in a run")


def check_callback_trains(case: Case) -> None:
    """Takes part in a run to its end; what it publishes is finite."""
    with tempfile.TemporaryDirectory() as folder, runs.parts_of(case):
        metrics = runs.train(Path(folder), callbacks=[_made(case)]).metrics
    steps = metrics.get("step", [])
    require(float(runs.STEPS) in steps, found=f"logged steps {steps}", expected=f"{runs.STEPS} steps")
    for name, values in metrics.items():
        bad = [value for value in values if value is not None and not math.isfinite(value)]
        require(not bad, found=f"metric '{name}' of {bad[0] if bad else 0}", expected="finite values")


def check_callback_state(case: Case) -> None:
    """Returns from ``state_dict`` what a checkpoint can hold, and restores it: another one then returns the same.

    Numbers, texts, tensors, lists and mappings are read from a checkpoint without running code; objects are not.
    """
    callback, other = _made(case), _made(case)
    with tempfile.TemporaryDirectory() as folder, runs.parts_of(case):
        runs.train(Path(folder), callbacks=[callback])
    state = callback.state_dict()
    Encoded(state)  # raises, naming what a checkpoint cannot hold
    other.load_state_dict(state)
    found = other.state_dict()
    require(_same(found, state), found=f"{found} after load_state_dict", expected=f"{state}")


def check_callback_resumes(case: Case) -> None:
    """Ends a run that is resumed from a checkpoint with the state that an undisturbed run ends with."""
    callback, other = _made(case), _made(case)
    with tempfile.TemporaryDirectory() as folder, runs.parts_of(case):
        run = runs.train(Path(folder), callbacks=[callback])
        checkpoint = run.path / "checkpoints" / f"step-{runs.SAVED:08d}"
        runs.train(Path(folder), resume=checkpoint, callbacks=[other])
    found, expected = other.state_dict(), callback.state_dict()
    require(_same(found, expected), found=f"{found} at the end of a resumed run", expected=f"{expected}")


def _made(case: Case) -> Callback:
    callback = case.build_raw()
    assert isinstance(callback, Callback)
    return callback


def _same(one: Any, other: Any) -> bool:
    """Whether two states are equal, tensors included."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
