"""``moekit config``: print, validate, diff."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from moekit.cli import main
from moekit.spec import load, to_plain

Captured = pytest.CaptureFixture[str]


def test_print_is_a_spec_that_loads_again(recipe: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(["config", "print", str(recipe), "model.moe.experts.count=8"]) == 0
    again = tmp_path / "again.yaml"
    again.write_text(capsys.readouterr().out)
    assert load(again) == load(recipe, ["model.moe.experts.count=8"])


def test_print_json(recipe: Path, capsys: Captured) -> None:
    assert main(["config", "print", str(recipe), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == to_plain(load(recipe))


def test_print_a_part(recipe: Path, capsys: Captured) -> None:
    assert main(["config", "print", "--only", "model.moe.experts", str(recipe), "seed=3"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == to_plain(load(recipe))["model"]["moe"]["experts"]


def test_print_a_part_that_is_not_there(recipe: Path, capsys: Captured) -> None:
    assert main(["config", "print", str(recipe), "--only", "model.mo.experts"]) == 2
    assert capsys.readouterr().err == (
        "error: no value at 'model.mo.experts': "
        "model has no 'mo' (it has: use, inputs, outputs, moe, init_range)\n"
        "  did you mean 'moe'?\n"
    )
    assert main(["config", "print", str(recipe), "--only", "seed.x"]) == 2
    assert capsys.readouterr().err == "error: no value at 'seed.x': seed has no 'x' (it has: nothing)\n"


def test_validate_what_is_right(recipe: Path, capsys: Captured) -> None:
    assert main(["config", "validate", str(recipe), "jacobs1991"]) == 0
    assert capsys.readouterr().out == f"{recipe}: valid\njacobs1991: valid\n"


def test_validate_one_that_is_wrong(recipe: Path, capsys: Captured) -> None:
    assert main(["config", "validate", str(recipe), "model.moe.router.use=dens", "model.inputs=two"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: 2 problems\n")
    assert "did you mean 'dense'?" in err
    assert "at model.inputs" in err


def test_validate_goes_on_after_a_wrong_one(recipe: Path, capsys: Captured) -> None:
    assert main(["config", "validate", "jacobs1992", str(recipe)]) == 2
    out, err = capsys.readouterr()
    assert out == f"{recipe}: valid\n"
    assert err.startswith("error: jacobs1992: unknown recipe 'jacobs1992'")
    assert "did you mean 'jacobs1991'?" in err


def test_diff_of_a_recipe_and_its_override(recipe: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    assert main(["config", "diff", str(recipe), "model.moe.experts.count=8", "seed=1"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == [str(recipe), str(recipe), "model.moe.experts.count=8", "seed=1"]
    assert [line.split() for line in lines] == [["seed", "0", "1"], ["model.moe.experts.count", "4", "8"]]


def test_diff_of_equal_specs(recipe: Path, capsys: Captured) -> None:
    assert main(["config", "diff", str(recipe), str(recipe)]) == 0
    assert capsys.readouterr().out == "no difference\n"


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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["print", "a", "b"], "moekit config print: expected one name, then key=value, got a, b\n"),
        (["print", "x=1"], "moekit config print: expected one name, then key=value, got none\n"),
        (["validate", "x=1"], "moekit config validate: expected one name or more, got none\n"),
        (["diff", "a"], "moekit config diff: expected two names, or one name and overrides, got a\n"),
        (["diff", "a", "b", "c"], "moekit config diff: expected two names, or one name and overrides, got a, b, c\n"),
    ],
)
def test_the_wrong_number_of_names(words: list[str], said: str, capsys: Captured) -> None:
    assert main(["config", *words]) == 2
    assert capsys.readouterr().err == f"error: {said}  more: moekit config --help\n"


def test_an_unknown_action(capsys: Captured) -> None:
    assert main(["config", "pritn", "a"]) == 2
    assert capsys.readouterr().err == (
        "error: unknown action 'pritn' (actions: print, validate, diff)\n"
        "  did you mean 'print'?\n"
        "  list them: moekit config --help\n"
    )
