"""``moekit config``: print, validate, diff, schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from cli_fakes import Captured, check_output
from pages import cases

from moekit.cli import main
from moekit.registry import current
from moekit.spec import load, to_plain
from moekit_testing.schema import recipe_schema


def test_print_is_a_spec_that_loads_again(recipe: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(["config", "print", str(recipe), "model.moe.experts.count=8"]) == 0
    again = tmp_path / "again.yaml"
    again.write_text(capsys.readouterr().out)
    assert load(again) == load(recipe, ["model.moe.experts.count=8"])


def test_print_writes_json_on_request(recipe: Path, capsys: Captured) -> None:
    assert main(["config", "print", str(recipe), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == to_plain(load(recipe))


def test_print_writes_one_part_on_request(recipe: Path, capsys: Captured) -> None:
    assert main(["config", "print", "--only", "model.moe.experts", str(recipe), "seed=3"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == to_plain(load(recipe))["model"]["moe"]["experts"]


def test_validate_names_each_valid_spec(recipe: Path, capsys: Captured) -> None:
    check_output(f"config validate {recipe} jacobs1991", f"{recipe}: valid\njacobs1991: valid", capsys)


def test_validate_checks_the_specs_after_an_invalid_one(recipe: Path, capsys: Captured) -> None:
    assert main(["config", "validate", "jacobs1992", str(recipe)]) == 2
    out, err = capsys.readouterr()
    assert out == f"{recipe}: valid\n"
    assert err.startswith("error: jacobs1992: unknown recipe 'jacobs1992'")
    assert "did you mean 'jacobs1991'?" in err


def test_diff_compares_a_recipe_with_its_override(
    recipe: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    assert main(["config", "diff", str(recipe), "model.moe.experts.count=8", "seed=1"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == [str(recipe), str(recipe), "model.moe.experts.count=8", "seed=1"]
    assert [line.split() for line in lines] == [["seed", "0", "1"], ["model.moe.experts.count", "4", "8"]]


def test_diff_of_equal_specs_is_empty(recipe: Path, capsys: Captured) -> None:
    check_output(f"config diff {recipe} {recipe}", "no difference", capsys)


def test_diff_of_two_papers_reads_like_history(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    assert main(["config", "diff", "jacobs1991", "deepseek_v3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["jacobs1991", "deepseek_v3"]
    assert lines[1].startswith("paper ")
    assert "Adaptive Mixtures of Local Experts (1991)  DeepSeek-V3 Technical Report (2024)" in lines[1]
    by_path = {line.split()[0]: line for line in lines[1:]}
    assert "dense " in by_path["model.moe.router"]
    assert "topk(top_k=8, score=sigmoid" in by_path["model.moe.router"]
    assert "()" not in "\n".join(lines)
    assert len(lines) < 25


def test_schema_writes_the_schema_of_recipes_as_json(capsys: Captured) -> None:
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == recipe_schema(current())


MISTAKES = """
$ config schema deepseek_v3  # a name for the schema
error: moekit config schema: unrecognized arguments: deepseek_v3
  usage: moekit config schema [-h]
  more: moekit config schema --help

$ config validate  # nothing to validate
error: moekit config validate: expected one name or more, got none
  more: moekit config --help

$ config print jacobs1991 --only model.mo.experts  # a path that does not exist
error: no value at 'model.mo.experts': model has no 'mo' (it has: use, inputs, outputs, moe, init_range)
  did you mean 'moe'?

$ config print jacobs1991 --only seed.x  # a path below a value
error: no value at 'seed.x': seed has no 'x' (it has: nothing)

$ config print a b  # two names to print
error: moekit config print: expected one name, then key=value, got a, b
  more: moekit config --help

$ config print x=1  # no name to print
error: moekit config print: expected one name, then key=value, got none
  more: moekit config --help

$ config validate x=1  # no name to validate
error: moekit config validate: expected one name or more, got none
  more: moekit config --help

$ config diff a  # one name to compare
error: moekit config diff: expected two names, or one name and overrides, got a
  more: moekit config --help

$ config diff a b c  # three names to compare
error: moekit config diff: expected two names, or one name and overrides, got a, b, c
  more: moekit config --help

$ config pritn a  # an unknown action
error: unknown action 'pritn' (actions: print, validate, diff, schema)
  did you mean 'print'?
  list them: moekit config --help
"""


@cases(MISTAKES)
def test_a_mistake_in_the_arguments_is_reported(given: str, expected: str, capsys: Captured) -> None:
    check_output(given, expected, capsys)
