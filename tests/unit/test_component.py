"""Component: its names, its target, and recipes found in a folder."""

from __future__ import annotations

import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import ClassVar

import pytest
from pages import whole

from moekit.component import Component, recipes_in
from moekit.errors import PluginError
from moekit.spec.kinds import RouterSpec


class Lottery(RouterSpec):
    takes_bias: ClassVar[bool] = True
    causal: ClassVar[bool] = True


def lottery(target: object) -> Component:
    return Component(name="lottery", spec=Lottery, target=target, summary="draws lots", plugin="acme")


def test_a_component_has_a_kind_a_full_name_and_a_target() -> None:
    component = lottery(Path)
    assert component.kind == "router"
    assert component.full_name == "acme/lottery"
    assert replace(component, plugin="").full_name == "lottery"
    assert component.load() is Path


def test_a_component_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'name'"):
        lottery(Path).name = "other"  # type: ignore[misc]


def test_a_named_target_is_imported_when_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lazy_lottery.py").write_text("class Ticket: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    component = lottery("lazy_lottery:Ticket")
    assert "lazy_lottery" not in sys.modules
    assert component.load().__name__ == "Ticket"
    monkeypatch.delitem(sys.modules, "lazy_lottery")


@pytest.mark.parametrize(
    ("source", "target", "cause"),
    [
        ("import no_such_kernel\n", "t1_lottery:Ticket", "ModuleNotFoundError: No module named 'no_such_kernel'"),
        ("class Ticket: pass\n", "t2_lottery:Tikcet", "AttributeError: module 't2_lottery' has no attribute 'Tikcet'"),
        ("1 / 0\n", "t3_lottery:Ticket", "ZeroDivisionError: division by zero"),
        ("", "no_such_lottery:Ticket", "ModuleNotFoundError: No module named 'no_such_lottery'"),
    ],
)
def test_a_target_that_cannot_be_imported_is_reported_with_the_cause(
    source: str, target: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{target.split('_')[0]}_lottery.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    message = f"router 'acme/lottery': cannot import its target '{target}'\n  {cause}"
    with pytest.raises(PluginError, match=whole(message)) as error:
        lottery(target).load()
    assert error.value.__cause__ is not None
    sys.modules.pop(target.partition(":")[0], None)


def test_recipes_in_a_folder_are_named_by_their_paths(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "small.yaml").write_text('schema: 1\nsummary: "A small one: for tests"\n')
    (tmp_path / "big.yaml").write_text("schema: 1\nmodel:\n  summary: not at the top level\n")
    (tmp_path / "notes.txt").write_text("# no recipe\n")
    found = list(recipes_in(tmp_path))
    assert [(r.name, r.path) for r in found] == [
        ("base/small", tmp_path / "base" / "small.yaml"),
        ("big", tmp_path / "big.yaml"),
    ]
