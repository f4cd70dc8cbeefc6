"""Verbs: their help pages, and mistakes in verb or arguments."""

from __future__ import annotations

import pytest
from cli_fakes import Captured, check_output
from pages import cases

from moekit.cli import main, verbs
from moekit.cli.core import VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_has_the_summary_of_the_first_page_and_examples(verb: str) -> None:
    module = verbs.load(verb)
    assert module.SUMMARY == VERBS[verb]
    assert f"moekit {verb}" in module.EXAMPLES
    assert len(module.SUMMARY) < 70


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("words", ["{verb} --help", "help {verb}", "{verb} -h"])
def test_a_verb_has_a_help_page(verb: str, words: str, capsys: Captured) -> None:
    assert main(words.format(verb=verb).split()) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: moekit {verb} ")
    assert VERBS[verb][1:] in out
    assert verbs.load(verb).EXAMPLES.rstrip() in out


def test_quick_verbs_are_verbs() -> None:
    assert set(verbs.QUICK) < set(VERBS)


MISTAKES = """
$ sohw topk  # an unknown verb
error: unknown verb 'sohw' (verbs: ls, show, plugins, config, params, plan, bench, train, generate, export)
  did you mean 'show'?
  more: moekit --help

$ --verison  # an unknown option in place of a verb
error: unknown option '--verison' (verbs: ls, show, plugins, config, params, plan, bench, train, generate, export)
  did you mean '--version'?
  more: moekit --help

$ ls --jsno  # an unknown option of a verb
error: moekit ls: unrecognized arguments: --jsno
  did you mean '--json'?
  usage: moekit ls [-h] [--json] [kind]
  more: moekit ls --help

$ show  # a missing argument
error: moekit show: the following arguments are required: name
  usage: moekit show [-h] [--kind KIND] [--doc] name
  more: moekit show --help
"""


@cases(MISTAKES)
def test_a_mistake_in_verb_or_arguments_is_reported(given: str, expected: str, capsys: Captured) -> None:
    check_output(given, expected, capsys)


@pytest.mark.parametrize(("verb", "missing"), [("params", "name"), ("plan", "--devices"), ("bench", "what")])
def test_overrides_and_shapes_may_be_omitted(verb: str, missing: str, capsys: Captured) -> None:
    assert main([verb]) == 2
    error, _, names = capsys.readouterr().err.splitlines()[0].partition(" are required: ")
    assert error == f"error: moekit {verb}: the following arguments"
    assert missing in names.split(", ") and set(names.split(", ")) <= {missing, "name"}  # Python 3.13.5 names more
