"""``moekit show``: pages of components and recipes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_fakes import ACME, BETA, BROKEN

from moekit.cli import main
from moekit.cli.describe import docstring
from moekit.component import Component
from moekit.registry import current
from moekit.spec.recipe import Recipe

Captured = pytest.CaptureFixture[str]
Use = Callable[..., None]

LOTTERY = """\
router lottery
  draws lots

  paper   Fate 1900
  plugin  acme (acme-moe 1.2)
  class   cli_fakes:LotteryRouter

options
  draws  int            required  >= 1  experts drawn for a token
  style  fair | loaded  fair            how lots are drawn
  seed   int | null     null      >= 0  seed; null for none

claims
  form               token_choice
  takes_bias         yes
  causal             no
  gives_smooth_load  no

in YAML
  {use: lottery, draws: ...}
"""

TOWER = """\
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

claims
  takes  tokens
  gives  next_token

in YAML
  {use: tower, where: ...}
"""


@pytest.mark.parametrize("name", ["lottery", "acme/lottery", "router/lottery", "routers/lottery"])
def test_a_component(name: str, use: Use, capsys: Captured) -> None:
    use(ACME)
    assert main(["show", name]) == 0
    assert capsys.readouterr().out == LOTTERY


def test_groups_and_slots(use: Use, capsys: Captured) -> None:
    use(ACME)
    assert main(["show", "tower"]) == 0
    assert capsys.readouterr().out == TOWER


def test_a_set_of_claims_is_told_in_order(use: Use, capsys: Captured) -> None:
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


def test_a_kind_chooses(use: Use, capsys: Captured) -> None:
    use(ACME)
    assert main(["show", "--kind", "routers", "lottery"]) == 0
    assert capsys.readouterr().out == LOTTERY
    assert main(["show", "lottery", "--kind", "model"]) == 2
    assert capsys.readouterr().err == (
        "error: unknown model 'lottery' (installed: tower)\n  list them: moekit ls models\n"
    )


def test_the_docstring_of_the_class(use: Use, capsys: Captured) -> None:
    use(ACME)
    assert main(["show", "lottery", "--doc"]) == 0
    assert capsys.readouterr().out == f"{LOTTERY}\ndocstring\n  Draws lots.\n\n  Source: none.\n"


def test_an_unknown_name(use: Use, capsys: Captured) -> None:
    use(ACME, BROKEN, disabled=("beta",))
    assert main(["show", "lotery"]) == 2
    assert capsys.readouterr().err == (
        "error: nothing is named 'lotery'\n"
        "  did you mean 'lottery'?\n"
        "  list them: moekit ls\n"
        "  note: plugin 'broken' failed to load (ModuleNotFoundError: No module named 'triton'); see: moekit plugins\n"
        "  note: MOEKIT_DISABLE_PLUGINS disables beta\n"
    )


@pytest.mark.parametrize(("name", "near"), [("acme/lotery", "acme/lottery"), ("router/lotery", "router/lottery")])
def test_an_unknown_full_name(name: str, near: str, use: Use, capsys: Captured) -> None:
    use(ACME)
    assert main(["show", name]) == 2
    assert capsys.readouterr().err == (
        f"error: nothing is named '{name}'\n  did you mean '{near}'?\n  list them: moekit ls\n"
    )


def test_a_recipe_in_a_file(recipe: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    assert main(["show", str(recipe)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"recipe {recipe}\n  a test\n\n  paper       On Tests, Me, 2025\n  claim       it works\n")
    assert "  parameters  24 in total, 14 active, as published\n" in out
    parts = dict(line.split(None, 1) for line in out.partition("parts\n")[2].partition("\n\n")[0].splitlines())
    assert parts == {
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


def test_an_installed_recipe_tells_how_to_train_it(capsys: Captured) -> None:
    assert main(["show", "jacobs1991"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("recipe jacobs1991\n")
    assert "  moekit train jacobs1991         train it\n" in out


def test_a_recipe_that_goes_on_from_another_names_it(capsys: Captured) -> None:
    assert main(["show", "st_moe_finetune"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("next") + 1 :][:2] == [
        "  moekit train st_moe                  first: it starts from these weights",
        "  moekit train st_moe_finetune         train it",
    ]


def test_a_file_that_is_not_there(tmp_path: Path, capsys: Captured) -> None:
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
    (tmp_path / "made_by_hand.py").write_text("Made = type('Made', (), {'__doc__': 'Made by hand.'})\n")
    monkeypatch.syspath_prepend(tmp_path)
    keeper = current().get("router", "dense")
    component = Component(name="made", spec=keeper.spec, target="made_by_hand:Made", summary="")
    assert docstring(component) == "Made by hand."
