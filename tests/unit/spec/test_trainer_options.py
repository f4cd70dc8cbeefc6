"""The options of the Trainer that a spec may set, against the Trainer itself."""

from __future__ import annotations

import inspect
import re
from typing import get_args

import lightning
import pytest
from lightning.fabric import connector
from pages import whole

from moekit.errors import SpecError
from moekit.spec import load
from moekit.spec.trainer_options import PRECISIONS, SET_BY_MOEKIT, TRAINER_OPTIONS


def test_the_known_options_are_those_of_lightning() -> None:
    assert TRAINER_OPTIONS == tuple(inspect.signature(lightning.Trainer).parameters)


def test_every_option_that_moekit_sets_is_known() -> None:
    assert set(SET_BY_MOEKIT) < set(TRAINER_OPTIONS)


def test_every_other_option_may_be_set() -> None:
    allowed = {name: 1 for name in TRAINER_OPTIONS if name not in SET_BY_MOEKIT} | {"precision": 16}
    assert load({"model": "bag", "trainer": allowed}).trainer == allowed


@pytest.mark.parametrize("name", SET_BY_MOEKIT)
def test_what_moekit_sets_is_rejected_with_the_reason(name: str) -> None:
    message = f"trainer option '{name}' is not for a spec: {SET_BY_MOEKIT[name]}\n  at trainer.{name}"
    with pytest.raises(SpecError, match=whole(message)):
        load({"model": "bag", "trainer": {name: True}})


def test_the_known_precisions_are_those_of_lightning() -> None:
    assert PRECISIONS == (*get_args(connector._PRECISION_INPUT_STR), *get_args(connector._PRECISION_INPUT_STR_ALIAS))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("precision", "bf16-mixd", "is none of its choices\n  at trainer.precision\n  expected one of transformer-"),
        ("precision", "bf16-mixd", "\n  did you mean 'bf16-mixed'?"),
        ("max_steps", 0, "max_steps: 0 is out of range\n  at trainer.max_steps\n  expected an integer >= 1"),
        ("num_nodes", True, "num_nodes: true is not an integer"),
        ("accumulate_grad_batches", "two", "accumulate_grad_batches: 'two' is not an integer"),
        ("accumulate_grad_batches", -1, "accumulate_grad_batches: -1 is out of range"),
        ("gradient_clip_val", "much", "gradient_clip_val: 'much' is not a number"),
        ("gradient_clip_val", -0.5, "gradient_clip_val: -0.5 is out of range"),
        ("val_check_interval", 0, "val_check_interval: 0 is out of range"),
        ("val_check_interval", -0.5, "val_check_interval: -0.5 is out of range"),
    ],
)
def test_values_that_cannot_work_are_reported_with_all_other_mistakes(name: str, value: object, said: str) -> None:
    with pytest.raises(SpecError, match=re.escape(said)) as caught:
        load({"model": "bag", "trainer": {name: value}, "seed": -1})
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("precision", [32, "16", "bf16", "64-true"]), ("val_check_interval", [1, 0.5, "00:01:00:00"]),
        ("gradient_clip_val", [0, 1.5, None]), ("accumulate_grad_batches", [1, 8, None]),
    ],
)  # fmt: skip
def test_values_that_the_trainer_takes(name: str, values: list[object]) -> None:
    for value in values:
        assert load({"model": "bag", "trainer": {name: value}}).trainer.get(name) == value
