"""``moekit ls``."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from cli_fakes import ACME, BETA, BROKEN

from moekit.cli import main
from moekit.registry import current
from moekit.spec.recipe import KINDS, plural

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


def test_every_installed_component_is_listed(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for component in current().components():
        assert any(line.split()[:1] == [component.name] and component.summary in line for line in lines)
    assert [line for line in lines if line and not line.startswith(" ")] == [plural(kind) for kind in KINDS]
