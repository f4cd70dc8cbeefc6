"""``moekit --version``."""

from __future__ import annotations

import platform
from importlib import metadata

from cli_fakes import Captured, check_output

import moekit
from moekit.cli import main


def test_the_version_is_printed(capsys: Captured) -> None:
    assert main(["--version"]) == main(["-V"]) == 0
    assert capsys.readouterr().out == f"moekit {moekit.__version__}\n" * 2


def test_a_verbose_version_lists_installed_and_tested_packages(capsys: Captured) -> None:
    assert main(["--version", "--verbose"]) == 0
    first, blank, header, *rows = capsys.readouterr().out.splitlines()
    assert (first, blank, header.split()) == (f"moekit {moekit.__version__}", "", ["installed", "tested", "with"])
    table = {row.split()[0]: row.split()[1] for row in rows}
    assert table["python"] == platform.python_version()
    assert table["torch"] == metadata.version("torch")
    assert table["pluggy"] == metadata.version("pluggy")


def test_a_version_takes_no_other_argument(capsys: Captured) -> None:
    message = "error: moekit --version takes no '--verbos'\n  expected nothing, or --verbose"
    check_output("--version --verbos", message, capsys)
