"""``moekit --version``; with ``--verbose`` also installed versions of dependencies, next to the tested ones."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import moekit
from moekit.cli import text
from moekit.errors import MoekitError

TESTED = Path(moekit.__file__).with_name("tested.json")
"""The environments in which the whole test suite passed, one object per Python and torch; the CI run writes it."""


def run(args: Sequence[str]) -> int:
    """Prints the version, and with ``--verbose`` a table of packages.

    Raises:
        MoekitError: there is another argument.
    """
    if list(args) not in ([], ["--verbose"]):
        raise MoekitError(f"moekit --version takes no {args[0]!r}\n  expected nothing, or --verbose")
    print(f"moekit {moekit.__version__}")
    if args:
        cells = json.loads(TESTED.read_text(encoding="utf-8"))
        names = [name for name in cells[0] if name not in ("passed", "failed")]
        tested = {name: ", ".join(dict.fromkeys(cell[name] for cell in cells if cell[name])) for name in names}
        rows = [("", "installed", "tested with"), *((name, installed(name), tested[name]) for name in names)]
        print("\n".join(["", *text.table(rows)]))
    return 0


def installed(name: str) -> str:
    """The installed version of Python or of a package, or ``not installed``."""
    if name == "python":
        return platform.python_version()
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
