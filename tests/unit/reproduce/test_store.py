"""Measurements are kept completely or not at all, and are found again by all that they depend on."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from moekit.errors import MoekitError
from moekit_reproduce.store import Store, write_json


def test_what_was_written_is_read_also_numbers_that_are_not_finite(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.path("dense seed 1", {"lr": 1e-3})
    assert store.read(path) is None
    store.write(path, {"seconds": 1.5, "values": {"loss": math.inf, "curve": [[1, 2.5]]}})
    assert store.read(path) == {"seconds": 1.5, "values": {"loss": math.inf, "curve": [[1, 2.5]]}}
    assert path.name.startswith("dense-seed-1-")


def test_the_name_of_a_file_depends_on_everything_that_was_measured(tmp_path: Path) -> None:
    store = Store(tmp_path)
    names = {store.path("a", {"lr": rate, "seed": seed}).name for rate in (1e-3, 2e-3) for seed in (1, 2)}
    assert len(names) == 4
    assert store.path("a", {"seed": 1, "lr": 1e-3}) == store.path("a", {"lr": 1e-3, "seed": 1})


def test_a_write_that_fails_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    path = store.path("a", {})

    def fail(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        store.write(path, {"values": {}})
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_command_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".dense-1.json.tmp").write_text('{"values": {"lo')
    Store(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"values": 3}'])
def test_a_damaged_measurement_is_reported_with_what_to_do(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path)
    path = store.path("a", {})
    path.write_text(text)
    with pytest.raises(MoekitError, match=r"is not a measurement.*\n  delete it"):
        store.read(path)


def test_json_has_no_numbers_that_json_does_not_know(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [math.nan, -math.inf, 1.0]})
    assert (tmp_path / "a.json").read_text() == '{\n "a": [\n  "nan",\n  "-inf",\n  1.0\n ]\n}\n'
