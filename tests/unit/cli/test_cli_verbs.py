"""Verbs, moekit's own and those of plugins: their help pages, and mistakes in verb, arguments or the verb's module."""

from __future__ import annotations

import argparse
import sys
from types import ModuleType

import pytest
from cli_fakes import BROKEN, Captured, Use, check_output
from fake_plugins import plugin
from pages import cases

from moekit.cli import main, verbs
from moekit.cli.core import VERBS
from moekit.component import Verb
from moekit.errors import MoekitError
from moekit.plugin import Plugin
from moekit.registry import current

FIRST_PARTY = [verb.name for verb in current().verbs if verb.name not in VERBS]


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_has_a_summary_of_one_line_and_examples(verb: str) -> None:
    assert f"moekit {verb}" in verbs.module_of(verbs.find(verb)).EXAMPLES
    assert len(VERBS[verb]) < 70


@pytest.mark.parametrize("verb", [*VERBS, *FIRST_PARTY])
@pytest.mark.parametrize("words", ["{verb} --help", "help {verb}", "{verb} -h"])
def test_a_verb_has_a_help_page(verb: str, words: str, capsys: Captured) -> None:
    assert main(words.format(verb=verb).split()) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: moekit {verb.replace('.', ' ')} ")
    assert verbs.find(verb).summary[1:] in out
    assert verbs.module_of(verbs.find(verb)).EXAMPLES.rstrip() in out


def test_quick_verbs_are_verbs() -> None:
    assert set(verbs.QUICK) < set(VERBS)


INSTALLED = f"{len(VERBS) + len(FIRST_PARTY)} verbs"  # more than an error lists
MISTAKES = f"""
$ sohw topk  # an unknown verb
error: unknown verb 'sohw' (installed: {INSTALLED})
  did you mean 'show'?
  list them: moekit help

$ bnech layer  # an unknown verb near one of a plugin
error: unknown verb 'bnech' (installed: {INSTALLED})
  did you mean 'bench'?
  list them: moekit help

$ help sohw  # help for an unknown verb
error: unknown verb 'sohw' (installed: {INSTALLED})
  did you mean 'show'?
  list them: moekit help

$ --verison  # an unknown option in place of a verb
error: unknown option '--verison' (options: --help, --version)
  did you mean '--version'?

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


def score_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module with a verb that prints its points and returns them; -1 is a user's mistake, 0 a bug."""

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("points", type=int, help="points to score")

    def run(args: argparse.Namespace) -> int:
        if args.points < 0:
            raise MoekitError("the points are negative\n  expected 1 or more")
        print(f"{name}: {6 // args.points} of 6")
        return int(args.points)

    module = ModuleType(name)
    vars(module).update(EXAMPLES="  moekit score 3      half of all\n", add_arguments=add_arguments, run=run)
    monkeypatch.setitem(sys.modules, name, module)


def scorer(name: str, target: str) -> Plugin:
    return plugin(name, f"{name}-moe", "1.2", verbs=[Verb(name="score", target=target, summary=f"score for {name}")])


@pytest.fixture
def acme(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    score_module("acme_score", monkeypatch)
    use(scorer("acme", "acme_score"))


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize("verb", ["score", "acme/score"])
def test_a_plugins_verb_runs_and_its_exit_code_is_the_commands(verb: str, capsys: Captured) -> None:
    assert main([verb, "3"]) == 3
    assert capsys.readouterr() == ("acme_score: 2 of 6\n", "")


def test_a_plugin_adds_an_action_to_a_verb(use: Use, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    score_module("acme_score", monkeypatch)
    use(plugin("acme", verbs=[Verb(name="config.score", target="acme_score", summary="score a recipe")]))
    for words in (["config", "score", "3"], ["config.score", "3"]):
        assert main(words) == 3
        assert capsys.readouterr().out == "acme_score: 2 of 6\n"
    check_output("config scoer", "error: unknown action 'scoer' (actions: print, validate, score)\n"
                 "  did you mean 'score'?\n  list them: moekit config --help", capsys)  # fmt: skip
    check_output("config --only score print a b", "error: moekit config print: expected one name, then key=value, "
                 "got a, b\n  more: moekit config --help", capsys)  # fmt: skip
    for words in (["config", "--help"], ["help"]):
        assert main(words) == 0
    page, verbs_page = capsys.readouterr().out.split("\nverbs\n")
    assert "print|validate|score" in page
    assert "config score" in verbs_page and "score a recipe" in verbs_page


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize("words", [["score", "--help"], ["help", "score"]])
def test_a_plugins_verb_has_a_help_page(words: list[str], capsys: Captured) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: moekit score [-h] points\n\nScore for acme.\n")
    assert "examples:\n  moekit score 3      half of all\n\nexit codes:\n  0    done\n" in out


@pytest.mark.usefixtures("acme")
def test_a_users_mistake_in_a_plugins_verb_is_a_message_without_a_traceback(capsys: Captured) -> None:
    check_output("score -- -1", "error: the points are negative\n  expected 1 or more", capsys)
    assert main(["score"]) == 2
    assert capsys.readouterr().err.startswith("error: moekit score: the following arguments are required: points\n")


@pytest.mark.usefixtures("acme")
def test_an_exception_in_a_plugins_verb_names_verb_and_plugin() -> None:
    with pytest.raises(ZeroDivisionError, match="division") as error:
        main(["score", "0"])
    assert error.value.__notes__ == ["while running verb 'acme/score' (acme-moe 1.2)"]


@pytest.mark.usefixtures("acme")
def test_an_exception_in_the_arguments_of_a_plugins_verb_names_both_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["acme_score"], "add_arguments", lambda parser: {}["points"])
    with pytest.raises(KeyError, match="points") as error:
        main(["score", "0"])
    assert error.value.__notes__ == ["while running verb 'acme/score' (acme-moe 1.2)"]


@pytest.mark.usefixtures("acme")
def test_an_exception_in_moekits_own_verb_has_no_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs.module_of(verbs.find("ls")), "run", lambda args: {}["a bug"])
    with pytest.raises(KeyError, match="a bug") as error:
        main(["ls"])
    assert not hasattr(error.value, "__notes__")


@pytest.mark.usefixtures("acme")
def test_a_mistyped_verb_of_a_plugin_is_suggested(capsys: Captured) -> None:
    assert main(["scroe", "3"]) == 2
    assert "\n  did you mean 'score'?\n  list them: moekit help\n" in capsys.readouterr().err


def test_an_unknown_verb_may_be_one_of_a_plugin_that_failed(use: Use, capsys: Captured) -> None:
    use(BROKEN)
    assert main(["score", "3"]) == 2
    assert "  note: plugin 'broken' failed to load (ModuleNotFoundError: " in capsys.readouterr().err


def test_namesakes_of_two_plugins_are_named_with_their_plugin(
    use: Use, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_module("acme_score", monkeypatch)
    score_module("beta_score", monkeypatch)
    use(scorer("acme", "acme_score"), scorer("beta", "beta_score"))
    check_output(
        "score 3",
        "error: verb 'score' is offered by 2 plugins: acme/score (acme-moe 1.2), beta/score (beta-moe 1.2)\n"
        "  expected 'acme/score' or 'beta/score'\n"
        "  list them: moekit plugins",
        capsys,
    )
    assert main(["beta/score", "2"]) == 2
    assert capsys.readouterr().out == "beta_score: 3 of 6\n"
    assert main(["beta/score", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: moekit beta/score [-h] points\n\nScore for beta.\n")


def test_a_module_that_cannot_be_used_is_reported(use: Use, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    use(scorer("acme", "acme_gone"), scorer("beta", "beta_empty"))
    monkeypatch.setitem(sys.modules, "beta_empty", ModuleType("beta_empty"))
    check_output(
        "acme/score 3",
        "error: verb 'acme/score': cannot import 'acme_gone'\n  ModuleNotFoundError: No module named 'acme_gone'",
        capsys,
    )
    check_output(
        "beta/score 3",
        "error: verb 'beta/score': 'beta_empty' has no EXAMPLES, add_arguments, run\n"
        "  expected EXAMPLES, add_arguments(parser) and run(args)",
        capsys,
    )
