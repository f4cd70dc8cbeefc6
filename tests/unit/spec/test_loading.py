"""Loading: sources, names, requirements, and the rules of overriding on a whole recipe."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import pytest
import spec_fakes as fakes
from fake_plugins import plugin
from pages import cases, whole

import moekit
from moekit import registry
from moekit.component import recipes_in
from moekit.errors import SpecError, UnknownName
from moekit.registry import Registry
from moekit.spec import component_spec, load, to_plain, validate
from moekit.spec.kinds import MoE
from moekit.spec.recipe import Stop, TrainerSpec

Write = Callable[[str, str], str]


def test_a_recipe_is_loaded_by_name() -> None:
    recipe = load("small")
    assert recipe.name == "small"
    assert recipe.model == fakes.Tower(
        width=8,
        vocab=256,
        moe=MoE(
            router=fakes.Pick(top_k=2),
            experts=fakes.Wide(count=4, hidden=16),
            dispatcher=fakes.Walk(),
            balancers={"bias": fakes.Nudge(rate=1e-2)},
        ),
    )
    assert (recipe.data, recipe.optimizer) == (fakes.Lines(seq=32), fakes.Step(lr=3e-3))
    assert recipe.trainer == TrainerSpec(max_steps=10)
    assert moekit.load is load


def test_a_name_a_file_a_mapping_and_a_recipe_are_loaded_alike(write: Write) -> None:
    write("mine.yaml", "extends: small\nseed: 3\n")
    by_name = load("mine.yaml")
    assert (by_name.name, by_name.seed) == ("mine", 3)
    assert load(Path("mine.yaml")) == by_name
    assert load(str(Path("mine.yaml").resolve())) == by_name
    assert load(by_name) is by_name
    assert load(to_plain(by_name)) == by_name
    mapping = MappingProxyType({"model": {"use": "bag", "pair": (3, 4)}, "optimizer": fakes.Step(lr=1.0)})
    from_mapping = load(mapping)
    assert from_mapping.name == ""
    assert (from_mapping.model.pair, from_mapping.optimizer) == ((3, 4.0), fakes.Step(lr=1.0))


def test_a_recipe_is_named_by_its_file_unless_it_says_otherwise(write: Write) -> None:
    assert load("more/tiny").name == "tiny"
    assert load("base/small").name == "small"
    assert load("small", ["name=other"]).name == "other"
    assert load("small", ["name=''"]).name == load("small", ["name=null"]).name == "small"
    assert load(write("${seed}.yaml", "extends: small")).name == "${seed}"
    with pytest.raises(SpecError, match="name: a list is not text"):
        load("small", ["name=[]"])


def test_a_recipe_can_be_overridden() -> None:
    recipe = load("small", ["model.moe.router.top_k=3"])
    changed = load(recipe, ["model.moe.router.use=blend", "model.moe.dispatcher=pour", "model.moe.balancers.bias=null"])
    assert changed.model.moe.router == fakes.Blend()
    assert changed.model.moe.balancers == {}
    assert (changed.name, changed.data) == ("small", recipe.data)


def test_one_override_may_be_given_as_text() -> None:
    assert load("small", "seed=3").seed == 3
    assert validate("small", "seed=3") is None


@pytest.mark.parametrize(
    ("overrides", "path", "value"),
    [
        (["model.moe.router.top_k=4"], "model.moe.router", fakes.Pick(top_k=4)),
        (["model.moe.router={use: pick, top_k: 4}"], "model.moe.router", fakes.Pick(top_k=4)),
        (["model.moe.router.use=pick"], "model.moe.router", fakes.Pick(top_k=2)),
        (["model.moe.experts=flat"], "model.moe.experts.count", 1),
        (["model.moe.balancers.bias=null"], "model.moe.balancers", {}),
        (
            ["model.moe.balancers.load=fair"],
            "model.moe.balancers",
            {"bias": fakes.Nudge(rate=1e-2), "load": fakes.Fair()},
        ),
        (["model.moe.balancers=null"], "model.moe.balancers", {}),
        (["model.moe=null"], "model.moe", None),
        (["model.head={}"], "model.head", fakes.Head()),
        (["model.head.depth=2"], "model.head", fakes.Head(depth=2)),
        (["model.note=null"], "model.note", None),
        (["optimizer.betas=null"], "optimizer.betas", [0.9, 0.95]),
        (["optimizer.betas=[0, 0.5]"], "optimizer.betas", [0.0, 0.5]),
        (["optimizer=null"], "optimizer", None),
        (["optimizer.lr=1e-4"], "optimizer.lr", 1e-4),
        (["seed=1e3"], "seed", 1000),
        (["seed='7'"], "seed", 7),
        (["trainer.max_steps=null", "trainer.precision=bf16-mixed"], "trainer", TrainerSpec(precision="bf16-mixed")),
        (["trainer.max_time=00:00:10:00"], "trainer.max_time", "00:00:10:00"),
        (["stop={metric: val/loss, below: 1}"], "stop", Stop(metric="val/loss", below=1.0)),
        (["data.vocab=512"], "model.vocab", 512),
        (["data.path=${.seq}-${seed}"], "data.path", "32-0"),
        (["data.path=\\${x}"], "data.path", "${x}"),
        (["optimizer.betas=['${optimizer.lr}', 0.5]"], "optimizer.betas", [3e-3, 0.5]),
        (["trainer.gradient_clip_val=${optimizer.lr}"], "trainer", TrainerSpec(max_steps=10, gradient_clip_val=3e-3)),
        (["data.path=${name}"], "data.path", "small"),
        (["summary=${model.moe.router.score}"], "summary", "softmax"),
        (["summary=${seed}"], "summary", "0"),
    ],
)
def test_an_override_changes_what_it_names(overrides: list[str], path: str, value: object) -> None:
    found: object = load("small", overrides)
    for key in path.split("."):
        found = found[key] if isinstance(found, dict) else getattr(found, key)
    assert found == value


def test_a_file_with_the_name_is_offered(write: Write) -> None:
    write("mine.yaml", "extends: small\n")
    with pytest.raises(SpecError, match=r"did you mean 'mine\.yaml'"):
        load("mine")


def test_a_folder_or_a_file_of_another_ending_is_not_a_recipe(write: Write) -> None:
    write("folder/mine.yaml", "extends: small\n")
    write("mine.yaml.txt", "extends: small\n")
    for name, what in (("folder", "folder"), ("mine.yaml.txt", "file")):
        note = f"note: '{name}' is a {what}; the file of a recipe ends in .yaml"
        with pytest.raises(SpecError, match=note) as caught:
            load(name)
        assert caught.value.problems[0].nearest == ""


def test_the_folder_of_a_run_is_its_recipe(write: Write) -> None:
    write("run/spec.yaml", "extends: small\nseed: 7\n")
    assert load("run").seed == 7
    assert load("run", ["seed=8"]).seed == 8


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"model": {"use": "bag"}, 3: 4}, "key 3 is not text\n  expected a name, in quotes if need be"),
        (
            {"model": {"use": "bag", 3: 4}},
            "key 3 is not text\n  at model\n  expected a name, in quotes if need be",
        ),
        (
            {"model": {"use": "bag"}, "trainer": {"callbacks": {"a": {"class": "a.B", "x": object()}}}},
            "x: an object of type object is not a plain value\n"
            "  at trainer.callbacks.a.x\n"
            "  expected text, a number, a list or a mapping",
        ),
        (
            {},
            "a recipe needs 'model'\n  at model\n  expected model: {use: <model>, ...}\n  list them: moekit ls models",
        ),
    ],
)
def test_a_mistake_in_a_mapping_is_reported_with_its_path(source: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=whole(message)):
        load(source)


REQUIREMENTS = r"""
$ "requires={broken: '>=1'}"  # requires a broken plugin
this spec requires plugin 'broken', which failed to load: ImportError: no such luck
  at requires.broken  in command line
  list them: moekit plugins

$ 'requires={base: new}'  # requires nonsense
'new' is not a version requirement
  at requires.base  in command line
  expected versions, such as '>=1.2,<2'

$ 'requires={base: 2}'  # requires a number, which is read as text
'2' is not a version requirement
  at requires.base  in command line
  expected versions, such as '>=1.2,<2'

$ "requires=\"${oc.create:'{base: 2}'}\""  # requires comes from an interpolation
'2' is not a version requirement
  at requires.base  in command line
  expected versions, such as '>=1.2,<2'

$ requires=base  # requires is not a mapping
requires: 'base' is not a mapping
  at requires  in command line
  expected a mapping to text
"""


@cases(REQUIREMENTS)
def test_a_requirement_that_is_not_met_is_reported(given: str, expected: str) -> None:
    fakes.check_overrides(given, expected)


def test_a_requirement_that_is_met_changes_nothing() -> None:
    assert load("small", ["requires={base: '>=1.2,<2'}"]).model == load("small").model


def test_a_required_plugin_must_state_a_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plugins = [fakes.base_plugin(list(recipes_in(tmp_path / "recipes"))), plugin("bare")]
    monkeypatch.setattr(registry, "_current", Registry(plugins))
    message = (
        "this spec requires plugin 'bare' >=1, which states no version\n"
        "  at requires.bare  in command line\n"
        "  list them: moekit plugins"
    )
    fakes.check_overrides("\"requires={bare: '>=1'}\"", message)


@pytest.mark.parametrize(
    ("kind", "node", "spec"),
    [
        ("router", {"use": "pick", "top_k": 2}, fakes.Pick(top_k=2)),
        ("router", {"use": "base/pick", "top_k": "${.scale}", "scale": 3}, fakes.Pick(top_k=3, scale=3.0)),
        ("dispatcher", "walk", fakes.Walk()),
    ],
)
def test_the_spec_of_one_component_is_made_of_its_node(kind: str, node: object, spec: object) -> None:
    assert component_spec(kind, node) == spec


def test_mistakes_in_the_spec_of_one_component_are_reported() -> None:
    with pytest.raises(SpecError, match=r"^2 problems") as caught:
        component_spec("router", {"use": "pick", "top_k": "x", "scale": 0})
    assert [problem.at for problem in caught.value.problems] == ["top_k", "scale"]
    with pytest.raises(UnknownName, match=r"^unknown kind 'ruoter' \(kinds: routers, experts, "):
        component_spec("ruoter", "pick")


def test_namesakes_must_be_chosen_by_plugin_except_in_a_recipe_of_one_of_them(with_acme: None, write: Write) -> None:
    message = (
        "router 'pick' is offered by 2 plugins: base/pick (moekit-base 1.4.0), acme/pick (moekit-acme 2.0)\n"
        "  at model.moe.router.use  in mine.yaml, line 2\n"
        "  expected 'base/pick' or 'acme/pick'\n"
        "  list them: moekit plugins"
    )
    mine = write("mine.yaml", "extends: small\nmodel: {moe: {router: {use: pick, top_k: 1}}}\n")
    with pytest.raises(SpecError, match=whole(message)):
        load(mine)
    assert isinstance(load("small").model.moe.router, fakes.Pick)
    assert load("small", ["model.moe.router=acme/pick"]).model.moe.router == fakes.OtherPick(top_k=1)


def test_shipped_recipes_are_validated_without_heavy_imports() -> None:
    code = (
        "import sys\n"
        "from moekit.spec import validate\n"
        "for recipe in ('jacobs1991', 'deepseek_v3'): validate(recipe)\n"
        "print(sorted({'torch', 'lightning', 'numpy', 'rich', 'packaging'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_file_that_a_recipe_extends_means_the_plugins_of_that_recipe_first(with_acme: None, tmp_path: Path) -> None:
    (tmp_path / "recipes" / "part.yaml").write_text(fakes.SMALL)
    (tmp_path / "recipes" / "small.yaml").write_text("extends: part.yaml\n")
    assert isinstance(load("small").model.moe.router, fakes.Pick)
