"""``docs/specs.md``: the files it shows are written, the commands below them run, and what they say is compared.

A ``text`` block that begins with ``# name.yaml`` is a file; one that begins with ``$`` is a command and all of its
output, in which the names of installed components are left out.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from moekit.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "specs.md"
BLOCKS = re.findall(r"^```text\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def settled(text: str) -> str:
    """The text without what other plugins and releases change."""
    text = re.sub(r"\(installed: [^)]*\)", "(installed: ...)", text)
    return re.sub(r"version \S+ is installed", "version ... is installed", text).rstrip()


def test_every_message_on_the_page(
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
        said = capsys.readouterr().err
        assert settled(said) == settled(rest), first
        commands += 1
    assert commands > 10
