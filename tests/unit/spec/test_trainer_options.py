"""The options of the Trainer that a spec may set, against the Trainer itself."""

from __future__ import annotations

import inspect

import lightning
import pytest

from moekit.errors import SpecError
from moekit.spec import load
from moekit.spec.trainer_options import SET_BY_MOEKIT, TRAINER_OPTIONS


def test_they_are_the_trainers() -> None:
    assert TRAINER_OPTIONS == tuple(inspect.signature(lightning.Trainer).parameters)


def test_what_moekit_sets_is_an_option() -> None:
    assert set(SET_BY_MOEKIT) < set(TRAINER_OPTIONS)


def test_every_other_option_may_be_set() -> None:
    allowed = {name: 1 for name in TRAINER_OPTIONS if name not in SET_BY_MOEKIT}
    assert load({"model": "bag", "trainer": allowed}).trainer == allowed


@pytest.mark.parametrize("name", SET_BY_MOEKIT)
def test_what_moekit_sets_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(SpecError) as caught:
        load({"model": "bag", "trainer": {name: True}})
    assert str(caught.value) == (
        f"trainer option '{name}' is not for a spec: {SET_BY_MOEKIT[name]}\n  at trainer.{name}"
    )
