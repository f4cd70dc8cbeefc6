"""How a failed command ends: exit codes, and what is printed to stderr."""

from __future__ import annotations

import argparse
import io
import sys

import pytest
from cli_fakes import Captured

from moekit.cli import main, verbs
from moekit.errors import MoekitError


def breaks(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes ``moekit ls`` raise."""

    def run(args: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(verbs.module_of(verbs.find("ls")), "run", run)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MoekitError("it is wrong\n  at model.dim"), "error: it is wrong\n  at model.dim\n"),
        (
            FileNotFoundError(2, "No such file or directory", "mine.yaml"),
            "error: mine.yaml: No such file or directory\n",
        ),
        (PermissionError(13, "Permission denied", "/x"), "error: /x: Permission denied\n"),
        (OSError(28, "No space left on device"), "error: No space left on device\n"),
        (OSError("something of the system"), "error: something of the system\n"),
    ],
)
def test_a_mistake_is_a_message_without_a_traceback(
    error: Exception, said: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch, error)
    assert main(["ls"]) == 2
    assert capsys.readouterr().err == said


def test_the_notes_of_a_mistake_are_printed(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    error = MoekitError("it is wrong")
    error.add_note("raised in model.router (Odd), plugin 'acme'")
    breaks(monkeypatch, error)
    assert main(["ls"]) == 2
    assert capsys.readouterr().err == "error: it is wrong\n  raised in model.router (Odd), plugin 'acme'\n"


def test_debugging_prints_the_traceback(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEKIT_DEBUG", "1")
    breaks(monkeypatch, MoekitError("it is wrong"))
    assert main(["ls"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith("moekit.errors.MoekitError: it is wrong\n")


def test_a_bug_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, KeyError("a bug"))
    with pytest.raises(KeyError, match="a bug"):
        main(["ls"])


def test_an_interrupt_ends_with_code_130(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, KeyboardInterrupt())
    assert main(["ls"]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_a_closed_reader_is_not_an_error(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Closed())
        assert main(["--help"]) == 141
    assert capsys.readouterr().err == ""
