"""``{class: package.module.Name}`` in the parts of the trainer. ``load`` imports none of these classes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from moekit import SpecError
from moekit.spec import dump, load, to_plain
from moekit.spec.kinds import Imported
from moekit.spec.tree import read
from moekit_report import diff

STOPPING = {"class": "no_such.package.Stopping", "monitor": "val/loss", "min_delta": 3, "mode": None}


def loaded(callback: Any, *overrides: str) -> Any:
    return load({"model": "bag", "trainer": {"callbacks": {"mine": callback}}}, overrides).trainer.callbacks.get("mine")


def test_a_class_is_read_without_an_import() -> None:
    given = {"monitor": "val/loss", "min_delta": 3, "mode": None}
    assert loaded(STOPPING) == Imported(path="no_such.package.Stopping", arguments=given)
    assert loaded(STOPPING).name == "Stopping"


def test_it_round_trips_through_plain_data_and_yaml() -> None:
    recipe = load(
        {"model": "bag", "trainer": {"callbacks": {"mine": {**STOPPING, "note": "\\${x", "to": [1, {"a": 2}]}}}}
    )
    plain = to_plain(recipe)["trainer"]["callbacks"]["mine"]
    assert list(plain) == ["class", "monitor", "min_delta", "mode", "note", "to"]
    assert load(to_plain(recipe)) == recipe
    assert load(read(dump(recipe), "dumped").data) == recipe


def test_overrides_change_an_argument_replace_the_class_or_delete_the_entry() -> None:
    assert loaded(STOPPING, "trainer.callbacks.mine.min_delta=9").arguments["min_delta"] == 9
    assert loaded(STOPPING, "trainer.callbacks.mine.class=a.B") == Imported(path="a.B")
    other = loaded(STOPPING, "trainer.callbacks.mine={class: a.B, x: 1}")
    assert other == Imported(path="a.B", arguments={"x": 1})
    assert loaded(STOPPING, "trainer.callbacks.mine=null") is None


@pytest.mark.usefixtures("real_plugins")
def test_a_component_takes_the_place_of_a_class_and_the_other_way() -> None:
    trainer = {"callbacks": {"mine": STOPPING}}
    as_component = load("deepseek_v3", ["trainer.callbacks.mine={class: a.B, x: 1}", "trainer.callbacks.mine=ema"])
    assert to_plain(as_component)["trainer"]["callbacks"]["mine"] == {"use": "ema", "decay": 0.999, "every": 1}
    with_ema = {"extends": "deepseek_v3", "trainer": {"callbacks": {"mine": {"use": "ema", "decay": 0.5}}}}
    as_class = load(with_ema, ["trainer.callbacks.mine={class: a.B}"])
    assert as_class.trainer.callbacks["mine"] == Imported(path="a.B")
    assert trainer["callbacks"]["mine"] == STOPPING


def test_arguments_may_be_interpolations() -> None:
    mine = loaded({"class": "a.B", "steps": "${trainer.max_steps}", "where": ["${seed}"]})
    assert mine.arguments == {"steps": 1000, "where": [0]}
    other = load(
        {
            "model": "bag",
            "seed": "${trainer.callbacks.mine.x}",
            "trainer": {"callbacks": {"mine": {"class": "a.B", "x": 4}}},
        }
    )
    assert other.seed == 4


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"class": "Stopping"}, "class: 'Stopping' is not an import path\n  at trainer.callbacks.mine.class"),
        ({"class": 3}, "class: 3 is not an import path"),
        ({"class": "a.b:C"}, "expected package.module.Name"),
        ({"class": "${name}"}, "class: '${name}' is not an import path"),
        (
            {"class_path": "a.B", "init_args": {}},
            "'class_path' is called 'class' here\n  at trainer.callbacks.mine.class_path",
        ),
        ({"_target_": "a.B"}, "'_target_' is called 'class' here"),
        ({"class": "a.B", "use": "ema"}, "'use' and 'class' exclude each other"),
        ({"class": "a.B", "x": "???"}, "x: the recipe leaves this open ('???')\n  at trainer.callbacks.mine.x"),
        ({"class": "a.B", "x": object()}, "an object of type object"),
        ({"class": "a.B", "x": "${nowhere}"}, "cannot resolve '${nowhere}'"),
    ],
)
def test_a_malformed_node_is_reported_with_its_path(node: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=re.escape(said)):
        loaded(node)


def test_other_kinds_take_no_class() -> None:
    with pytest.raises(SpecError, match=r"a model cannot be a class by its import path\n  at model\.class\n"):
        load({"model": {"class": "a.B"}})


def test_a_difference_is_one_change() -> None:
    a = load({"model": "bag", "trainer": {"callbacks": {"mine": STOPPING}}})
    b = load({"model": "bag", "trainer": {"callbacks": {"mine": {"class": "a.B"}}}})
    (change,) = diff(a, b)
    assert str(change) == "trainer.callbacks.mine: Stopping(monitor=val/loss, min_delta=3, mode=none) -> B()"


def test_a_path_is_checked_in_python_too() -> None:
    with pytest.raises(ValueError, match="'B' is not an import path"):
        Imported(path="B")
