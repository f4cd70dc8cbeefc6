"""``moekit ls``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from cli_fakes import ACME, BETA, BROKEN

from moekit.cli import main
from moekit.cli.ls import SIZES
from moekit.component import Component
from moekit.plugin import Plugin
from moekit.registry import current
from moekit.spec import load
from moekit.spec.recipe import KINDS, Paper, Recipe, plural

Captured = pytest.CaptureFixture[str]
Use = Callable[..., None]


def test_everything_kind_by_kind(use: Use, capsys: Captured) -> None:
    use(ACME)
    assert main(["ls"]) == 0
    assert capsys.readouterr().out == (
        "routers\n"
        "  lottery  draws lots           acme  Fate 1900\n"
        "\n"
        "balancers\n"
        "  keeper   keeps the load even  acme\n"
        "\n"
        "models\n"
        "  tower    a tower of layers    acme\n"
    )


@pytest.mark.parametrize("word", ["router", "routers"])
def test_one_kind_by_its_singular_or_plural(word: str, use: Use, capsys: Captured) -> None:
    use(ACME)
    assert main(["ls", word]) == 0
    assert capsys.readouterr().out == "routers\n  lottery  draws lots  acme  Fate 1900\n"


def test_a_kind_without_components_says_so(use: Use, capsys: Captured) -> None:
    use(ACME)
    assert main(["ls", "data"]) == 0
    assert capsys.readouterr().out == "data\n  none\n"


def test_no_component_at_all(use: Use, capsys: Captured) -> None:
    use()
    assert main(["ls"]) == 0
    assert capsys.readouterr().out == "nothing is installed; see: moekit plugins\n"


def test_namesakes_are_listed_as_use_takes_them(use: Use, capsys: Captured) -> None:
    use(ACME, BETA)
    assert main(["ls", "routers"]) == 0
    assert capsys.readouterr().out == (
        "routers\n  acme/lottery  draws lots        acme  Fate 1900\n  beta/lottery  draws other lots  beta\n"
    )


def test_a_narrow_terminal_has_no_column_of_papers(use: Use, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    use(ACME)
    assert main(["ls", "routers"]) == 0
    assert capsys.readouterr().out == "routers\n  lottery  draws lots  acme\n"


def test_a_broken_plugin_is_named_and_stops_nothing(use: Use, capsys: Captured) -> None:
    use(ACME, BROKEN)
    assert main(["ls", "routers"]) == 0
    out, err = capsys.readouterr()
    assert "lottery" in out
    assert err == "note: plugin 'broken' failed to load; see: moekit plugins\n"


def test_an_unknown_kind(use: Use, capsys: Captured) -> None:
    use(ACME)
    assert main(["ls", "rooter"]) == 2
    assert capsys.readouterr().err == (
        "error: unknown kind 'rooter' (kinds: routers, experts, dispatchers, balancers, attention, models, objectives, "
        "data, optimizers, schedules, recipes)\n"
        "  did you mean 'router'?\n"
        "  list them: moekit ls\n"
    )


def test_json(use: Use, capsys: Captured) -> None:
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
    use: Use, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = (
        Component(
            name="tall-64b", spec=Recipe, target="t.yaml", summary="as big", paper="Tall 2021", year=2021, trains=False
        ),
        Component(
            name="tall-8b", spec=Recipe, target="t.yaml", summary="big", paper="Tall 2021", year=2021, trains=False
        ),
        Component(name="small", spec=Recipe, target="s.yaml", summary="no paper"),
        Component(name="tall", spec=Recipe, target="t.yaml", summary="tiny", paper="Tall 2021", year=2021),
        Component(name="zeroth", spec=Recipe, target="z.yaml", summary="old", paper="Zeroth 1991", year=1991),
    )
    use(Plugin(name="acme", module="acme", components=tuple(replace(recipe, plugin="acme") for recipe in recipes)))
    assert main(["ls", "recipes"]) == 0
    wide = (
        "recipes\n"
        "  zeroth    old       acme  Zeroth 1991\n"
        "  tall      tiny      acme  Tall 2021\n"
        "  small     no paper  acme\n"
        "\n"
        "recipes at the sizes of their papers, to read and to count (moekit params NAME)\n"
        "  tall-8b   big       acme  Tall 2021\n"
        "  tall-64b  as big    acme  Tall 2021\n"
    )
    assert capsys.readouterr().out == wide
    monkeypatch.setenv("COLUMNS", "80")  # no room for a paper's name; its year stays
    assert main(["ls", "recipes"]) == 0
    assert capsys.readouterr().out == wide.replace("Zeroth 1991", "1991").replace("Tall 2021", "2021")


def test_what_a_listing_says_of_a_recipe_is_what_its_file_says() -> None:
    """Listing parses no YAML: year and data are found line by line, through the files that a recipe extends."""
    for component in current().components("recipe"):
        recipe = load(component.name)
        paper = recipe.paper or Paper()
        assert (component.year, component.trains) == (paper.year, recipe.data is not None), component.name
        assert component.paper == " ".join(filter(None, [paper.title.partition(":")[0], str(paper.year or "")]))


def test_every_installed_component_is_listed(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for component in current().components():
        assert any(line.split()[:1] == [component.name] and component.summary in line for line in lines)
    assert [line for line in lines if line and not line.startswith(" ")] == [*map(plural, KINDS), SIZES]
