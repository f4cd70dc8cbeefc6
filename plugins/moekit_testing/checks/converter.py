"""Checks of converters: what a run with ``start.convert`` calls."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from moekit.contracts import Converter
from moekit.errors import MoekitError
from moekit.spec.kinds import ModelSpec
from moekit_testing.assertions import require
from moekit_testing.case import Case, Check


def checks(case: Case) -> Iterator[Check]:
    """The checks of a converter."""
    yield check_missing_run_named


def check_missing_run_named(case: Case) -> None:
    """Is a ``moekit.contracts.Converter`` that names the checkpoint if there is none."""
    converter = case.build_raw()
    found = type(converter).__name__
    require(isinstance(converter, Converter), found=found, expected="a subclass of moekit.contracts.Converter")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "no-checkpoint"
        try:
            converter.convert(ModelSpec(), path)
        except MoekitError as error:
            require(path.name in str(error), found=str(error), expected=f"an error that names {path.name}")
        else:
            require(False, found="no error", expected="MoekitError: there is no such checkpoint")
