"""Checks of exporters: what ``moekit export --format NAME`` calls."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from moekit.contracts import Exporter
from moekit.errors import MoekitError
from moekit_testing.assertions import require
from moekit_testing.case import Case, Check


def checks(case: Case) -> Iterator[Check]:
    """The checks of an exporter."""
    yield check_existing_output_kept


def check_existing_output_kept(case: Case) -> None:
    """Is a ``moekit.Exporter`` that refuses to write over a folder that exists, and leaves it as it is."""
    exporter = case.build_raw()
    require(isinstance(exporter, Exporter), found=type(exporter).__name__, expected="a subclass of moekit.Exporter")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "mine").write_text("kept")
        try:
            exporter.export(Path(folder) / "no-checkpoint", Path(folder))
        except MoekitError:
            pass
        else:
            require(False, found="no error", expected="MoekitError: it exists")
        left = [path.name for path in Path(folder).iterdir()]
        require(left == ["mine"], found=f"{left}", expected="the folder as it was")
