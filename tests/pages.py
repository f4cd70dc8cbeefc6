"""Tests as pages: a line ``$ given  # name``, and below it exactly what is expected of it."""

from __future__ import annotations

import re
from typing import Any

import pytest


def whole(message: str) -> str:
    """The pattern that matches ``message`` and no more."""
    return rf"\A{re.escape(message)}\Z"


def cases(page: str) -> Any:
    """Parametrises a test by ``given`` and ``expected`` with the cases of a page; their names are the ids."""
    found = []
    for case in re.split(r"^\$ ", page, flags=re.MULTILINE)[1:]:
        head, _, expected = case.partition("\n")
        given, name = head.rsplit("  # ", 1)
        found.append(pytest.param(given.strip(), expected.strip("\n"), id=name))
    return pytest.mark.parametrize(("given", "expected"), found)
