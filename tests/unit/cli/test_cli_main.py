"""The first page, dispatch, and how a command ends: exit codes and what is said on stderr."""

from __future__ import annotations

import argparse
import gc
import io
import platform
import subprocess
import sys
from importlib import metadata

import pytest

import moekit
from moekit import cli
from moekit.cli import VERBS, first_page, main, verbs
from moekit.errors import MoekitError

Captured = pytest.CaptureFixture[str]


def breaks(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes ``moekit ls`` raise."""

    def run(args: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(verbs.load("ls"), "run", run)


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"], ["help"]])
def test_the_first_page(words: list[str], capsys: Captured) -> None:
    assert main(words) == 0
    assert capsys.readouterr().out == first_page()


def test_the_first_page_tells_every_verb_and_three_examples() -> None:
    page = first_page()
    for verb, summary in VERBS.items():
        assert f"  {verb:<10}{summary}\n" in page
    examples = [line for line in page.partition("examples:\n")[2].splitlines() if line.strip()]
    assert len(examples) == 3
    assert all(line.split()[1] in VERBS for line in examples)
    assert max(map(len, page.splitlines())) <= 120


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_keeps_to_the_protocol(verb: str) -> None:
    module = verbs.load(verb)
    assert module.SUMMARY == VERBS[verb]
    assert f"moekit {verb}" in module.EXAMPLES
    assert len(module.SUMMARY) < 70


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("words", ["{verb} --help", "help {verb}", "{verb} -h"])
def test_a_verb_has_a_page(verb: str, words: str, capsys: Captured) -> None:
    assert main(words.format(verb=verb).split()) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: moekit {verb} ")
    assert VERBS[verb][1:] in out
    assert verbs.load(verb).EXAMPLES.rstrip() in out


def test_version(capsys: Captured) -> None:
    assert main(["--version"]) == main(["-V"]) == 0
    assert capsys.readouterr().out == f"moekit {moekit.__version__}\n" * 2


def test_a_verbose_version_lists_what_is_installed_beside_what_was_tested(capsys: Captured) -> None:
    assert main(["--version", "--verbose"]) == 0
    first, blank, header, *rows = capsys.readouterr().out.splitlines()
    assert (first, blank, header.split()) == (f"moekit {moekit.__version__}", "", ["installed", "tested", "with"])
    table = {row.split()[0]: row.split()[1] for row in rows}
    assert table["python"] == platform.python_version()
    assert table["torch"] == metadata.version("torch")
    assert table["pluggy"] == metadata.version("pluggy")


def test_a_version_takes_no_other_argument(capsys: Captured) -> None:
    assert main(["--version", "--verbos"]) == 2
    assert "moekit --version takes no '--verbos'\n  expected nothing, or --verbose" in capsys.readouterr().err


def test_an_unknown_verb(capsys: Captured) -> None:
    assert main(["sohw", "topk"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "error: unknown verb 'sohw' (verbs: ls, show, plugins, config, params, plan, bench, train, generate, export)\n"
        "  did you mean 'show'?\n"
        "  more: moekit --help\n"
    )


def test_an_unknown_first_option(capsys: Captured) -> None:
    assert main(["--verison"]) == 2
    assert capsys.readouterr().err == (
        "error: unknown option '--verison' "
        "(verbs: ls, show, plugins, config, params, plan, bench, train, generate, export)\n"
        "  did you mean '--version'?\n"
        "  more: moekit --help\n"
    )


def test_an_unknown_option_of_a_verb(capsys: Captured) -> None:
    assert main(["ls", "--jsno"]) == 2
    assert capsys.readouterr().err == (
        "error: moekit ls: unrecognized arguments: --jsno\n"
        "  did you mean '--json'?\n"
        "  usage: moekit ls [-h] [--json] [kind]\n"
        "  more: moekit ls --help\n"
    )


def test_a_missing_argument(capsys: Captured) -> None:
    assert main(["show"]) == 2
    assert capsys.readouterr().err == (
        "error: moekit show: the following arguments are required: name\n"
        "  usage: moekit show [-h] [--kind KIND] [--doc] name\n"
        "  more: moekit show --help\n"
    )


@pytest.mark.parametrize(("verb", "missing"), [("params", "name"), ("plan", "--devices"), ("bench", "what")])
def test_only_what_must_be_there_is_missing(verb: str, missing: str, capsys: Captured) -> None:
    """Overrides and names of shapes may be left out."""
    assert main([verb]) == 2
    said, _, names = capsys.readouterr().err.splitlines()[0].partition(" are required: ")
    assert said == f"error: moekit {verb}: the following arguments"
    assert missing in names.split(", ") and set(names.split(", ")) <= {missing, "name"}  # Python 3.13.5 names more


def test_arguments_come_from_the_command_line(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["moekit", "--version"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("moekit ")


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


def test_debugging_shows_the_traceback(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_an_interrupt(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, KeyboardInterrupt())
    assert main(["ls"]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_a_reader_that_has_gone_is_no_error(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Gone())
        assert main(["--help"]) == 141
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("words", "code"), [("show topk", 0), ("shwo topk", 2)])
def test_a_closed_stdout_or_stderr(words: str, code: int) -> None:
    """As ``moekit ... >&-`` has it: no traceback, and no message in the other stream."""
    for closed in (">&-", "2>&-"):
        command = f"exec {sys.executable} -m moekit {words} {closed}"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert bool(done.stdout) == (code == 0 and closed == "2>&-")
        assert done.stderr.startswith("error: unknown verb") if code and closed == ">&-" else not done.stderr


@pytest.mark.parametrize("words", [["ls"], ["ls", "nothing"], ["--help"]])
def test_garbage_is_collected_again_afterwards(words: list[str], capsys: Captured) -> None:
    assert gc.isenabled()
    main(words)
    assert gc.isenabled()


def test_who_has_switched_collection_off_finds_it_off(capsys: Captured) -> None:
    gc.disable()
    try:
        main(["ls"])
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_quick_verbs_are_verbs() -> None:
    assert set(verbs.QUICK) < set(cli.VERBS)
