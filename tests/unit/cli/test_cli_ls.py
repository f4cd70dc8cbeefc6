"""``moekit ls``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_fakes import ACME, BETA, BROKEN, Captured, Use, check_output
from fake_plugins import plugin
from pages import cases

from moekit.cli import main
from moekit.cli.ls import RECIPES, SIZES
from moekit.component import recipes_in
from moekit.registry import current
from moekit.spec import load
from moekit.spec.layers import head_of
from moekit.spec.recipe import Paper

LISTINGS = """
$ ls  # every kind
routers
  lottery  draws lots           acme  Fate 1900

balancers
  keeper   keeps the load even  acme

models
  tower    a tower of layers    acme

$ ls router  # one kind, in the singular
routers
  lottery  draws lots  acme  Fate 1900

$ ls routers  # one kind, in the plural
routers
  lottery  draws lots  acme  Fate 1900

$ ls data  # a kind without components
data
  none

$ ls rooter  # an unknown kind
error: unknown kind 'rooter' (kinds: routers, experts, dispatchers, balancers, attention, models, objectives, data, \
tokenizers, evaluators, exporters, converters, optimizers, schedules, callbacks, loggers, strategies)
  did you mean 'router'?
  list them: moekit ls
"""


@cases(LISTINGS)
def test_components_are_listed_by_kind(given: str, expected: str, use: Use, capsys: Captured) -> None:
    use(ACME)
    check_output(given, expected, capsys)


def test_no_component_at_all_is_reported(use: Use, capsys: Captured) -> None:
    use()
    check_output("ls", "nothing is installed; see: moekit plugins", capsys)


def test_namesakes_are_listed_as_use_takes_them(use: Use, capsys: Captured) -> None:
    use(ACME, BETA)
    rows = "  acme/lottery  draws lots        acme  Fate 1900\n  beta/lottery  draws other lots  beta"
    check_output("ls routers", f"routers\n{rows}", capsys)


def test_a_narrow_terminal_has_no_column_of_papers(use: Use, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    use(ACME)
    check_output("ls routers", "routers\n  lottery  draws lots  acme", capsys)


def test_a_broken_plugin_is_named_and_stops_nothing(use: Use, capsys: Captured) -> None:
    use(ACME, BROKEN)
    assert main(["ls", "routers"]) == 0
    out, err = capsys.readouterr()
    assert "lottery" in out
    assert err == "note: plugin 'broken' failed to load; see: moekit plugins\n"


def test_json_has_the_fields_of_each_component(use: Use, capsys: Captured) -> None:
    use(ACME, BETA)
    assert main(["ls", "routers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0] == {
        "kind": "router",
        "name": "lottery",
        "use": "acme/lottery",
        "summary": "draws lots",
        "plugin": "acme",
        "paper": "Fate 1900",
    }


def test_recipes_to_train_come_first_then_those_to_count_by_year_and_size(
    use: Use, capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = {
        "tall-64b": "summary: as big\nextends: tall\ndata: null\n",
        "tall-8b": "summary: big\nextends: tall\ndata: null\n",
        "small": "summary: no paper\ndata: vowels\n",
        "tall": "summary: tiny\npaper: {title: 'Tall: a model', year: 2021}\ndata: vowels\n",
        "zeroth": "summary: old\npaper: {title: Zeroth, year: 1991}\ndata: vowels\n",
    }
    for name, written in files.items():
        (tmp_path / f"{name}.yaml").write_text(written)
    use(plugin("acme", recipes=list(recipes_in(tmp_path))))
    wide = (
        "recipes\n"
        "  zeroth    old       acme  Zeroth 1991\n"
        "  tall      tiny      acme  Tall 2021\n"
        "  small     no paper  acme\n"
        "\n"
        "recipes at the sizes of their papers, to read and to count (moekit params NAME)\n"
        "  tall-8b   big       acme  Tall 2021\n"
        "  tall-64b  as big    acme  Tall 2021"
    )
    check_output("ls recipes", wide, capsys)
    monkeypatch.setenv("COLUMNS", "80")  # too narrow for the names of papers; their years remain
    check_output("ls recipes", wide.replace("Zeroth 1991", "1991").replace("Tall 2021", "2021"), capsys)


def test_a_recipe_is_listed_with_the_year_paper_and_data_of_its_file() -> None:
    for offered in current().recipes:
        recipe, head = load(offered.name), head_of(offered, current())
        paper = recipe.paper or Paper()
        assert (head.year, head.trains) == (paper.year, recipe.data is not None), offered.name
        assert head.paper == " ".join(filter(None, [paper.title.partition(":")[0], str(paper.year or "")]))


def test_every_installed_component_is_listed(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for component in current().components():
        assert any(line.split()[:1] == [component.name] and component.summary in line for line in lines)
    assert [line for line in lines if line and not line.startswith(" ")] == [
        *(kind.plural for kind in current().kinds.values()),
        RECIPES,
        SIZES,
    ]
