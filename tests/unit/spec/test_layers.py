"""Layers of a spec: files and what they extend, overrides, and what cannot be read; the heads of recipes."""

# ruff: noqa: E501 - whole files are written in a line here

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_plugins import plugin
from pages import cases, whole
from spec_fakes import Pick, Step, check_overrides

from moekit.component import RecipeFile, recipes_in
from moekit.errors import SpecError
from moekit.registry import Registry, current
from moekit.spec import load
from moekit.spec.layers import Head, head_of, open_source
from moekit.spec.loading import parse_overrides
from moekit.spec.tree import Tree

Write = Callable[[str, str], str]


def test_files_extend_in_order(write: Write) -> None:
    write("parts/left.yaml", "extends: ../base.yaml\nmodel: {width: 1}\noptimizer: {lr: 1.0}\n")
    write("parts/right.yaml", "extends: ../base.yaml\nmodel: {width: 2}\n")
    write("base.yaml", "extends: small\noptimizer: {lr: 9.0}\n")
    write("mine.yaml", "extends: [parts/left.yaml, parts/right.yaml]\nseed: 5\n")
    recipe = load("mine.yaml")
    assert (recipe.seed, recipe.model.width) == (5, 2)
    assert recipe.optimizer == Step(lr=1.0)  # base.yaml counts once, before left.yaml
    assert recipe.model.moe.router == Pick(top_k=2)


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    """At once, and when it has lain unchanged: its tree is kept by its time and size, which two quick writes share."""
    file, long_ago = tmp_path / "mine.yaml", 1_000_000_000
    for seed, age in ((1, None), (2, None), (10, long_ago), (11, long_ago + 1), (123, long_ago + 1)):
        file.write_text(f"model: {{use: pick}}\nseed: {seed}\n")
        if age is not None:
            os.utime(file, (age, age))
        tree = open_source(file, current()).tree
        assert tree.data["seed"] == seed
    assert open_source(file, current()).tree is tree


def test_a_mapping_extends() -> None:
    assert load({"extends": "small", "model": {"width": 3}}).model.width == 3


def test_a_file_may_have_its_parents_name(write: Write) -> None:
    write("small.yaml", "extends: small\nmodel: {width: 3}\n")
    assert load("small.yaml").model.width == 3


def test_an_error_names_the_file_that_it_comes_from(write: Write) -> None:
    write("parts/base.yaml", "model:\n  use: tower\n  width: no\n")
    write("mine.yaml", "extends: parts/base.yaml\nmodel: {vocab: -1}\n")
    with pytest.raises(SpecError, match=r"^2 problems") as caught:
        load("mine.yaml")
    places = {p.at: p.source for p in caught.value.problems}
    assert places == {"model.width": "parts/base.yaml, line 3", "model.vocab": "mine.yaml, line 2"}


def test_a_circle_is_reported_with_its_chain(write: Write) -> None:
    write("a.yaml", "extends: b.yaml\n")
    write("b.yaml", "extends: [small, deep/c.yaml]\n")
    write("deep/c.yaml", "extends: ../b.yaml\n")
    message = "extends goes in a circle: b.yaml -> deep/c.yaml -> b.yaml\n  at extends  in deep/c.yaml, line 1"
    with pytest.raises(SpecError, match=whole(message)):
        load("a.yaml")


def test_a_file_that_is_not_utf8_is_rejected_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("seed: 1\nsummary: caf\u00e9\n".encode("latin-1"))
    with pytest.raises(SpecError, match=whole("not UTF-8 text\n  in latin.yaml, line 2")):
        load("latin.yaml")


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "mark.yaml").write_bytes(b"\xef\xbb\xbfextends: small\n")
    assert load("mark.yaml").name == "mark"


FILES = r"""
$ None  # missing file
cannot read mine.yaml: No such file or directory
  expected a YAML file

$ "# nothing\n"  # empty
the file is empty
  in mine.yaml
  expected a mapping of options: 'model:', 'data:', ...

$ "- model\n"  # a list
the file holds a list
  in mine.yaml
  expected a mapping of options: 'model:', 'data:', ...

$ "hello\n"  # just text
the file holds 'hello'
  in mine.yaml
  expected a mapping of options: 'model:', 'data:', ...

$ "schema: 2\nnew_thing: 3\n"  # schema
written in spec format 2; this moekit reads format 1
  at schema  in mine.yaml, line 1

$ "extends: smal\n"  # extends unknown
unknown recipe 'smal' (installed: more/tiny, small)
  at extends  in mine.yaml, line 1
  did you mean 'small'?
  list them: moekit ls recipes
  note: plugin 'broken' failed to load (ImportError: no such luck); see: moekit plugins

$ "extends: [small, base/gone.yaml]\n"  # extends missing file
cannot read base/gone.yaml: No such file or directory
  at extends[1]  in mine.yaml, line 1
  expected a YAML file

$ "extends: 3\n"  # extends number
extends: 3 is not a name
  at extends  in mine.yaml, line 1
  expected a recipe, a file, or a list of them

$ "extends: folder.yaml\n"  # extends a directory
cannot read folder.yaml: Is a directory
  at extends  in mine.yaml, line 1
  expected a YAML file

$ "extends: mine.yaml\n"  # extends itself
extends goes in a circle: mine.yaml -> mine.yaml
  at extends  in mine.yaml, line 1

$ "extends: small\nmodel:\n  moe:\n    router:\n      use: pick\n      top_k: 99\n    shared: wide\n  width: x\n"  # line numbers
3 problems

top_k: 99 is out of range
  at model.moe.router.top_k  in mine.yaml, line 6
  expected an integer >= 1 and <= 8

expert 'wide' needs 'hidden'
  at model.moe.shared.hidden  in mine.yaml, line 7
  expected hidden: an integer >= 1 (width of the hidden layer)
  list them: moekit show wide

width: 'x' is not an integer
  at model.width  in mine.yaml, line 8
  expected an integer >= 1

$ "extends: broken/thing\n"  # extends a recipe of a broken plugin
recipe 'broken/thing' cannot be used: plugin 'broken' (moekit-broken) failed to load
  ImportError: no such luck
  see: moekit plugins
  at extends  in mine.yaml, line 1
"""


@cases(FILES)
def test_a_file_that_cannot_be_read_is_reported_with_its_line(given: str, expected: str, write: Write) -> None:
    Path("folder.yaml").mkdir()
    text = ast.literal_eval(given)
    if text is not None:
        write("mine.yaml", text)
    with pytest.raises(SpecError, match=whole(expected)):
        load("mine.yaml")


def overridden(*texts: str) -> Tree:
    (layer,) = parse_overrides(texts, current())
    return layer


def test_overrides_become_one_tree_whatever_their_order() -> None:
    texts = ["m.r.bias=false", "m.r.use=blend", "a.b={use: x}", "c=", "d=null", "e=[1, two]", "f=a=b"]
    expected = {
        "m": {"r": {"use": "blend", "bias": False}},
        "a": {"b": {"use": "x"}},
        "c": "",
        "d": None,
        "e": [1, "two"],
        "f": "a=b",
    }
    assert overridden(*texts).data == expected
    assert overridden(*reversed(texts)).data == expected


def test_the_later_of_two_overrides_counts() -> None:
    assert overridden("a.b=1", "a.b=2").data == {"a": {"b": 2}}
    assert overridden("r.use=pick", "r.top_k=2", "r.use=blend").data == {"r": {"use": "blend"}}


def test_places_of_an_override() -> None:
    tree = overridden("a.b={c: 1}")
    assert {str(place) for place in tree.places.values()} == {"command line"}
    assert set(tree.places) == {("a",), ("a", "b"), ("a", "b", "c")}


def test_a_text_that_cannot_be_parsed_survives_the_merging_of_overrides() -> None:
    assert overridden("a.b=${", "a.c=1", "a.d=[1, '${x']").data == {"a": {"b": "${", "c": 1, "d": [1, "${x"]}}


def test_an_override_of_a_part_of_a_reference_begins_another_layer() -> None:
    layers = parse_overrides(["a=${b}", "c=1", "a.d=2", "e=3"], current())
    assert [layer.data for layer in layers] == [{"a": "${b}", "c": 1}, {"a": {"d": 2}, "e": 3}]


OVERRIDES = r"""
$ model.width  # override without a value
override 'model.width' is malformed
  in command line
  expected path.to.option=value

$ 'model={use: tower'  # an override that is not YAML
not valid YAML: while parsing a flow mapping, did not find expected ',' or '}'
  at model  in command line

$ 'model={use: tower, width: 3, width: 4}'  # override with a key twice
key 'width' occurs twice
  at model.width  in command line

$ schema=2  # schema
written in spec format 2; this moekit reads format 1
  at schema  in command line
"""


@cases(OVERRIDES)
def test_an_override_that_cannot_be_read_is_reported(given: str, expected: str) -> None:
    check_overrides(given, expected)


def test_a_recipe_inherits_its_paper_and_data_from_what_it_extends(tmp_path: Path) -> None:
    files = {
        "paper": 'paper:\n  title: "Tall: a model"\n  year: 2021\ndata:\n  use: vowels\n  title: none of its own\n',
        "base/plain": "data: vowels\n",
        "small": "extends: paper\npaper: {claim: small}\n",
        "both": "extends: [base/plain, paper]\n",
        "counted": "extends: small\ndata: null  # to count\n",
        "round": "extends: trip\n",
        "trip": "extends: round\n",
    }
    for name, text in files.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).with_suffix(".yaml").write_text(text)
    registry = Registry([plugin("papers", recipes=list(recipes_in(tmp_path / "mine")))])
    heads = {recipe.name: head_of(recipe, registry) for recipe in registry.recipes}
    found = {name: (head.paper, head.year, head.trains) for name, head in heads.items()}
    assert found == {
        "paper": ("Tall 2021", 2021, True),
        "base/plain": ("", 0, True),
        "small": ("Tall 2021", 2021, True),
        "both": ("Tall 2021", 2021, True),
        "counted": ("Tall 2021", 2021, False),
        "round": ("", 0, False),
        "trip": ("", 0, False),
    }


def test_a_file_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    nothing = Head(summary="", paper="", year=0, trains=False)
    (tmp_path / "broken.yaml").write_text("summary: [")
    for name in ("broken", "missing"):
        assert head_of(RecipeFile(name=name, path=tmp_path / f"{name}.yaml"), Registry([])) == nothing
