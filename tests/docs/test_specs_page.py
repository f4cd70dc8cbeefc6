"""``docs/specs.md``: every command on the page prints the error message shown below it.

A ``text`` block that begins with ``# name.yaml`` is a file, and is written. One that begins with ``$`` is a command and
its whole output; names of installed components and versions are not compared.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from moekit.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "specs.md"
BLOCKS = re.findall(r"^```text\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def without_versions(text: str) -> str:
    """The text without what installed plugins and releases change."""
    text = re.sub(r"\(installed: [^)]*\)", "(installed: ...)", text)
    return re.sub(r"version \S+ is installed", "version ... is installed", text).rstrip()


def test_every_command_on_the_page_prints_the_message_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = 0
    for block in BLOCKS:
        first, _, rest = block.partition("\n")
        if first.startswith("# "):
            Path(first.removeprefix("# ")).write_text(block, encoding="utf-8")
            continue
        assert first.startswith("$ moekit "), first
        assert main(shlex.split(first)[2:]) == 2, first
        error = capsys.readouterr().err
        assert without_versions(error) == without_versions(rest), first
        commands += 1
    assert commands > 10
