"""Specs made in Python are valid by construction; their mistakes have the texts of mistakes in YAML."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import pytest
from pages import whole

from moekit.spec.fields import ConflictError, Spec, is_a, option


class Tower(Spec):
    floors: int = option(3, "storeys", ge=1)
    height: float | None = option(None, "metres", gt=0)
    roof: Literal["flat", "steep"] = option("flat", "its form")
    lit: bool = option(False, "whether there is light")
    doors: list[int] = option([], "where the doors are")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"floors": "2"}, "floors: '2' is not an integer"),
        ({"floors": 2.0}, "floors: 2.0 is not an integer"),
        ({"floors": True}, "floors: True is not an integer"),
        ({"floors": 0}, "floors=0 is out of range (>= 1)"),
        ({"floors": 10**30}, f"floors={10**30} is out of range (>= 1)"),
        ({"height": math.inf}, "height=inf is not finite"),
        ({"height": math.nan}, "height=nan is not finite"),
        ({"height": "tall"}, "height: 'tall' is not a number or null"),
        ({"roof": "round"}, "roof='round' is out of range (one of flat, steep)"),
        ({"lit": 1}, "lit: 1 is not true or false"),
        ({"doors": [1, "two"]}, "doors: [1, 'two'] is not a list of integers"),
        ({"floors": "2", "lit": "no"}, "floors: '2' is not an integer; lit: 'no' is not true or false"),
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_rejected(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConflictError, match=whole(message)):
        Tower(**given)


def test_an_option_may_mean_infinity() -> None:
    class Sea(Spec):
        depth: float = option(math.inf, "metres", gt=0, finite=False)

    assert Sea().depth == math.inf


def test_valid_values_are_kept() -> None:
    tower = Tower(floors=2, height=30, roof="steep", lit=True, doors=[1, 2])
    assert tower.height == 30


def test_a_spec_of_valid_values_is_that_of_its_constructor_and_its_rules_hold() -> None:
    class Gate(Spec):
        low: int = option(1, "metres")
        high: int = option(2, "metres")
        bars: list[int] = option([1], "metres each")

        def check(self) -> Iterable[str]:
            if self.low > self.high:
                yield "low is above high"

    class Counted(Gate):
        def __post_init__(self) -> None:
            super().__post_init__()
            self.__dict__["count"] = len(self.bars)

    made = Gate.of_valid({"high": 3})
    assert made == Gate(high=3) and made.bars is not Gate().bars
    assert vars(Counted.of_valid({"bars": [1, 2]}))["count"] == 2
    for cls in (Gate, Counted):
        with pytest.raises(ConflictError, match="low is above high"):
            cls.of_valid({"low": 5})


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, float, True),
        (1.0, int, False),
        (None, int | None, True),
        (None, int, False),
        ("x", str | int, True),
        ({"a": 1}, dict[str, Any], True),
        (object(), Any, True),
        ((1, 2), list[int], True),
        ((1, 2.5), tuple[int, float], True),
        ((1, 2.5, 3), tuple[int, float], False),
        ((1, 2, 3), tuple[int, ...], True),
        (7, list[int], False),
    ],
)
def test_a_value_is_of_its_declared_type(value: Any, hint: Any, expected: bool) -> None:
    assert is_a(value, hint) is expected
