"""Every recipe still computes what it computed: one small forward pass against stored numbers (see ``golden.py``)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from golden import FOLDER, numbers, path_of, recipes

HOW = "if a paper was meant to change: python tests/golden/golden.py"


def apart(found: Any, stored: Any, path: str = "") -> list[str]:
    """Where two trees of numbers differ."""
    if isinstance(stored, dict) and isinstance(found, dict):
        keys = dict.fromkeys([*stored, *found])
        return [line for key in keys for line in apart(found.get(key), stored.get(key), f"{path}.{key}".lstrip("."))]
    if isinstance(stored, list) and isinstance(found, list) and len(stored) == len(found):
        pairs = enumerate(zip(found, stored, strict=True))
        return [line for i, (a, b) in pairs for line in apart(a, b, f"{path}[{i}]")]
    if isinstance(stored, float) and isinstance(found, float):
        return [] if found == pytest.approx(stored, rel=1e-7, abs=1e-9) else [f"{path}: {found!r}, stored {stored!r}"]
    return [] if found == stored and type(found) is type(stored) else [f"{path}: {found!r}, stored {stored!r}"]


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_computes_what_it_computed(name: str) -> None:
    assert path_of(name).is_file(), f"no numbers of {name} are stored yet: python tests/golden/golden.py {name}"
    stored = json.loads(path_of(name).read_text(encoding="utf-8"))
    differences = apart(numbers(name), stored)
    assert not differences, f"{name}: {len(differences)} numbers differ ({HOW})\n" + "\n".join(differences[:10])


def test_no_numbers_are_stored_without_a_recipe() -> None:
    assert {path.name for path in FOLDER.glob("*.json")} == {path_of(name).name for name in recipes()}


def test_a_difference_is_seen() -> None:
    stored = {"y": {"norm": 1.0, "entries": [1.0, 2.0]}, "load": [3, 4]}
    assert apart(stored, stored) == []
    assert apart({"y": {"norm": 1.0001, "entries": [1.0, 2.0]}, "load": [4, 3]}, stored) == [
        "y.norm: 1.0001, stored 1.0",
        "load[0]: 4, stored 3",
        "load[1]: 3, stored 4",
    ]
    assert apart({"y": {"norm": 1.0, "entries": [1.0]}}, stored) != []
