"""The first page, standard streams, and garbage collection around a command."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
from cli_fakes import Captured

from moekit.cli import first_page, main
from moekit.cli.core import VERBS


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_prints_the_first_page(words: list[str], capsys: Captured) -> None:
    assert main(words) == 0
    assert capsys.readouterr().out == first_page()


def test_the_first_page_lists_moekits_own_verbs_and_three_examples_and_says_where_the_others_are() -> None:
    page = first_page()
    for verb, summary in VERBS.items():
        assert f"  {verb:<10}{summary}\n" in page
    examples, _, end = page.partition("examples:\n")[2].partition("\n\n")
    assert end == "verbs of plugins: moekit help\n"
    assert [line.split()[1] for line in examples.splitlines()] == ["ls", "train", "config"]
    assert max(map(len, page.splitlines())) <= 120


def test_arguments_come_from_the_command_line(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["moekit", "--version"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("moekit ")


@pytest.mark.parametrize(("words", "code"), [("show topk", 0), ("shwo topk", 2)])
def test_a_closed_stdout_or_stderr_is_not_an_error(words: str, code: int) -> None:
    """After ``moekit ... >&-`` there is no traceback, and no message in the other stream."""
    for closed in (">&-", "2>&-"):
        command = f"exec {sys.executable} -m moekit {words} {closed}"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert bool(done.stdout) == (code == 0 and closed == "2>&-")
        assert done.stderr.startswith("error: unknown verb") if code and closed == ">&-" else not done.stderr


@pytest.mark.parametrize("words", [["ls"], ["ls", "nothing"], ["--help"]])
def test_garbage_collection_is_enabled_afterwards(words: list[str], capsys: Captured) -> None:
    assert gc.isenabled()
    main(words)
    assert gc.isenabled()


def test_garbage_collection_stays_disabled_for_a_caller_that_disabled_it(capsys: Captured) -> None:
    gc.disable()
    try:
        main(["ls"])
        assert not gc.isenabled()
    finally:
        gc.enable()
