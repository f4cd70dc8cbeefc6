"""``moekit help``: every verb, also those of plugins."""

from __future__ import annotations

import argparse
import re
import shlex

import pytest
from cli_fakes import BROKEN, Captured, Use, check_output
from fake_plugins import plugin

from moekit.cli import main
from moekit.cli.core import VERBS
from moekit.cli.verbs import find, parser_of
from moekit.component import Verb
from moekit.plugin import Plugin
from moekit.registry import current

OWN = "\n".join(["verbs", *(f"  {verb:<10}  {summary}" for verb, summary in VERBS.items())])


def scorer(name: str, *verbs: str) -> Plugin:
    offered = [Verb(name=verb, target="nowhere", summary=f"{verb} for {name}") for verb in verbs]
    return plugin(name, f"{name}-moe", "1.2", verbs=offered)


def test_without_plugins_moekits_own_verbs_are_listed(use: Use, capsys: Captured) -> None:
    use()
    check_output("help", "\n".join(["verbs", *(f"  {v:<8}  {summary}" for v, summary in VERBS.items())]), capsys)


def test_verbs_of_plugins_are_listed_with_their_package_and_namesakes_with_their_plugin(
    use: Use, capsys: Captured
) -> None:
    use(scorer("acme", "win", "score"), scorer("beta", "score"))
    assert main(["help"]) == 0
    own, others = capsys.readouterr().out.rstrip().split("\n\n")
    assert own == OWN
    assert [" ".join(line.split()) for line in others.splitlines()] == [
        "verbs of plugins",
        "acme/score score for acme acme-moe 1.2",
        "beta/score score for beta beta-moe 1.2",
        "win win for acme acme-moe 1.2",
    ]


def test_verbs_of_first_party_plugins_are_listed(capsys: Captured) -> None:
    assert main(["help"]) == 0
    others = capsys.readouterr().out.partition("verbs of plugins\n")[2]
    assert {"bench", "check", "new", "plan", "reproduce"} <= {line.split()[0] for line in others.splitlines()}


def test_a_plugin_that_failed_is_named(use: Use, capsys: Captured) -> None:
    use(BROKEN)
    assert main(["help"]) == 0
    assert capsys.readouterr().err == "note: plugin 'broken' failed to load; see: moekit plugins\n"


@pytest.mark.parametrize("verb", sorted({*VERBS, *(verb.name for verb in current().verbs)}))
def test_the_page_of_every_verb_has_examples_that_parse_defaults_and_exit_codes(verb: str, capsys: Captured) -> None:
    assert main([*verb.split("."), "--help"]) == 0
    page = capsys.readouterr().out
    assert "\nexit codes:\n  0    done\n" in page
    parser = parser_of(find(verb))
    shown = re.sub(r"\n {3,}", " ", page.partition("\nexamples:\n")[2])  # an example of two lines becomes one
    examples = re.findall(rf"^  (?:\w+=\S+ |source <\()*moekit ({verb.replace('.', ' ')}\b.*)$", shown, re.MULTILINE)
    assert examples, "no example"
    for example in examples:
        command = re.split(r" {2,}| [>|] |\)", example)[0]
        parser.parse_intermixed_args(shlex.split(command)[1 + verb.count(".") :])
    for action in parser.arguments:
        assert action.help, f"{action.dest}: no help"
        if action.option_strings and action.default not in (None, False, "", [], argparse.SUPPRESS):
            assert "default" in action.help, f"{action.option_strings[0]}: which default?"
