"""The table of families in docs/hugging_face.md: a row for each, within the bounds of the checks, and true refusals."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from moekit.registry import current
from moekit_hf.checks import GRADIENTS, LOGITS

DOCS = Path(__file__).parents[2] / "docs"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_hugging_face", DOCS / "make_hugging_face.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows() -> dict[str, list[str]]:
    module = script()
    table = (DOCS / "hugging_face.md").read_text().split(module.BEGIN)[1].partition(module.END)[0]
    cells = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in table.splitlines()[2:]]
    return {row[0].strip("`"): row for row in cells}


def test_the_table_has_every_family_within_the_bounds_of_the_checks() -> None:
    formats = {each.name: each for each in current().components("format") if each.plugin == "hf"}
    found = rows()
    assert set(found) == set(formats) == set(script().REFUSED)
    for name, (_, models, tiny, logits, experts, gradients, *_) in found.items():
        assert models == formats[name].summary and int(tiny) == len(formats[name].spec_class().tiny())
        assert float(logits) <= LOGITS and float(gradients) <= GRADIENTS and experts in ("equal", "dense")


def test_what_the_table_says_is_refused_is() -> None:
    pytest.importorskip("transformers")
    found, module = rows(), script()
    for component in current().components("format"):
        assert module.refused(component.name, component.spec_class()) == found[component.name][6]
