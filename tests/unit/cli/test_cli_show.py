"""``moekit show``: pages of components and recipes."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from cli_fakes import ACME, BETA, BROKEN, Captured, Use, check_output
from pages import cases

from moekit.cli import main
from moekit.cli.show import docstring
from moekit.component import Component
from moekit.registry import current
from moekit.spec.recipe import Recipe

LOTTERY = """\
router lottery
  draws lots

  paper   Fate 1900
  plugin  acme (acme-moe 1.2)
  class   cli_fakes:LotteryRouter

options
  draws  int            required  >= 1  experts sampled for a token
  style  fair | loaded  fair            kind of lottery
  seed   int | null     null      >= 0  seed; null for none

capabilities
  form               token_choice
  takes_bias         yes
  causal             no
  needs_tokens       no
  gives_smooth_load  no
  lists_all          no

in YAML
  {use: lottery, draws: ...}"""

PAGES = """
$ show tower  # groups and slots
model tower
  a tower of layers

  plugin  acme (acme-moe 1.2)
  class   acme.tower:Tower

options
  depth        int          2         >= 1 and <= 9  layers
  widths       list of int  [8, 16]                  widths of the layers
  where        group        required                 which layers
  where.first  int          0         >= 0           from this layer on

slots
  where.router  router             who decides               moekit ls routers
  extra         router, optional   a second opinion          moekit ls routers
  keepers       balancers by name  what keeps the load even  moekit ls balancers

capabilities
  takes  tokens
  gives  next_token

in YAML
  {use: tower, where: ...}

$ show lottery --kind model  # a name of another kind
error: unknown model 'lottery' (installed: tower)
  list them: moekit ls models

$ show acme/lotery  # an unknown name in a plugin
error: nothing is named 'acme/lotery'
  did you mean 'acme/lottery'?
  list them: moekit ls

$ show router/lotery  # an unknown name of a kind
error: nothing is named 'router/lotery'
  did you mean 'router/lottery'?
  list them: moekit ls
"""


@pytest.mark.parametrize(
    "name", ["lottery", "acme/lottery", "router/lottery", "routers/lottery", "lottery --kind routers"]
)
def test_a_component_is_shown_by_name_plugin_and_kind(name: str, use: Use, capsys: Captured) -> None:
    use(ACME)
    check_output(f"show {name}", LOTTERY, capsys)


def test_the_docstring_of_the_class_is_shown_on_request(use: Use, capsys: Captured) -> None:
    use(ACME)
    check_output("show lottery --doc", f"{LOTTERY}\n\ndocstring\n  Draws lots.\n\n  Source: none.", capsys)


@cases(PAGES)
def test_a_component_is_shown_whole_and_an_unknown_name_reported(
    given: str, expected: str, use: Use, capsys: Captured
) -> None:
    use(ACME)
    check_output(given, expected, capsys)


def test_an_unknown_name_is_reported_with_plugins_that_are_missing(use: Use, capsys: Captured) -> None:
    use(ACME, BROKEN, disabled=("beta",))
    message = (
        "error: nothing is named 'lotery'\n"
        "  did you mean 'lottery'?\n"
        "  list them: moekit ls\n"
        "  note: plugin 'broken' failed to load (ModuleNotFoundError: No module named 'triton'); see: moekit plugins\n"
        "  note: MOEKIT_DISABLE_PLUGINS disables beta"
    )
    check_output("show lotery", message, capsys)


def test_a_set_of_claims_is_shown_in_order(use: Use, capsys: Captured) -> None:
    use(ACME)
    assert main(["show", "keeper"]) == 0
    assert "  forms       soft, token_choice\n" in capsys.readouterr().out


def test_a_claim_that_options_decide_is_not_printed_as_a_property(capsys: Captured) -> None:
    assert main(["show", "expert_parallel"]) == 0
    out = capsys.readouterr().out
    assert "  forms     depends on its options\n  dropless  depends on its options\n" in out


def test_every_component_of_a_name_is_shown(use: Use, capsys: Captured) -> None:
    use(ACME, BETA)
    assert main(["show", "lottery"]) == 0
    out = capsys.readouterr().out
    assert out.count("router lottery\n") == 2
    assert "{use: acme/lottery, draws: ...}" in out
    assert "{use: beta/lottery}" in out


def test_a_recipe_in_a_file_is_shown(recipe: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    assert main(["show", str(recipe)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"recipe {recipe}\n  a test\n\n  paper       On Tests, Me, 2025\n  claim       it works\n")
    assert "  parameters  24 in total, 14 active, as published\n" in out
    rows = dict(line.split(None, 1) for line in out.partition("components\n")[2].partition("\n\n")[0].splitlines())
    assert rows == {
        path: f"{name:<{len('mixture')}}  {current().get(kind, name).summary}"
        for path, kind, name in (
            ("model", "model", "mixture"),
            ("model.moe.router", "router", "dense"),
            ("model.moe.experts", "expert", "linear"),
            ("model.moe.dispatcher", "dispatcher", "soft"),
        )
    }
    assert "\nYAML\n  # Mine: a test\n  schema: 1\n" in out
    assert out.endswith(
        f"\nnext\n  moekit params {recipe}        count its parameters\n"
        f"  moekit config print {recipe}  every option, resolved\n"
    )


def test_an_installed_recipe_is_shown_with_the_command_that_trains_it(capsys: Captured) -> None:
    assert main(["show", "jacobs1991"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("recipe jacobs1991\n")
    assert "  moekit train jacobs1991         train it\n" in out


def test_a_recipe_that_starts_from_another_names_it(capsys: Captured) -> None:
    assert main(["show", "st_moe_finetune"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("next") + 1 :][:2] == [
        "  moekit train st_moe                  first: it starts from these weights",
        "  moekit train st_moe_finetune         train it",
    ]


def test_a_file_that_does_not_exist_is_reported(tmp_path: Path, capsys: Captured) -> None:
    assert main(["show", str(tmp_path / "gone.yaml")]) == 2
    assert str(tmp_path / "gone.yaml") in capsys.readouterr().err


@pytest.mark.parametrize(
    "component", [c for c in current().components() if c.spec is not Recipe], ids=lambda c: c.full_name
)
def test_every_installed_component_has_a_page_and_a_docstring(component: Component, capsys: Captured) -> None:
    assert main(["show", f"{component.kind}/{component.name}", "--doc"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{component.kind} {component.name}\n")
    text = docstring(component)
    assert text
    assert text == (inspect.getdoc(component.load()) or "").strip()


def test_a_docstring_that_the_source_does_not_show_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_dynamically.py").write_text("Made = type('Made', (), {'__doc__': 'Made dynamically.'})\n")
    monkeypatch.syspath_prepend(tmp_path)
    keeper = current().get("router", "dense")
    component = Component(name="made", spec=keeper.spec, target="made_dynamically:Made", summary="")
    assert docstring(component) == "Made dynamically."
