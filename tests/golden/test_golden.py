"""Every recipe computes the stored numbers in one small forward pass (see ``golden.py``)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from golden import FOLDER, numbers, path_of, recipes

HOW = "if the change is intended: python tests/golden/golden.py"


def differences(found: Any, stored: Any, path: str = "") -> list[str]:
    """The paths at which two trees of numbers differ."""
    if isinstance(stored, dict) and isinstance(found, dict):
        keys = dict.fromkeys([*stored, *found])
        return [
            line for key in keys for line in differences(found.get(key), stored.get(key), f"{path}.{key}".lstrip("."))
        ]
    if isinstance(stored, list) and isinstance(found, list) and len(stored) == len(found):
        pairs = enumerate(zip(found, stored, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{path}[{i}]")]
    if isinstance(stored, float) and isinstance(found, float):
        return [] if found == pytest.approx(stored, rel=1e-7, abs=1e-9) else [f"{path}: {found!r}, stored {stored!r}"]
    return [] if found == stored and type(found) is type(stored) else [f"{path}: {found!r}, stored {stored!r}"]


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_computes_its_stored_numbers(name: str) -> None:
    assert path_of(name).is_file(), f"no numbers of {name} are stored yet: python tests/golden/golden.py {name}"
    stored = json.loads(path_of(name).read_text(encoding="utf-8"))
    found = differences(numbers(name), stored)
    assert not found, f"{name}: {len(found)} numbers differ ({HOW})\n" + "\n".join(found[:10])


def test_stored_numbers_belong_to_existing_recipes() -> None:
    assert {path.name for path in FOLDER.glob("*.json")} == {path_of(name).name for name in recipes()}


def test_differences_names_each_changed_number_and_length() -> None:
    stored = {"y": {"norm": 1.0, "entries": [1.0, 2.0]}, "load": [3, 4]}
    assert differences(stored, stored) == []
    assert differences({"y": {"norm": 1.0001, "entries": [1.0, 2.0]}, "load": [4, 3]}, stored) == [
        "y.norm: 1.0001, stored 1.0",
        "load[0]: 4, stored 3",
        "load[1]: 3, stored 4",
    ]
    assert differences({"y": {"norm": 1.0, "entries": [1.0]}}, stored) != []
