"""``moekit params``: the page, the JSON, and how counts are rounded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moekit.cli import main
from moekit.params import count_parameters
from moekit.spec import load
from moekit_plan.params_cli import READINGS, rounded, rounded_like

Captured = pytest.CaptureFixture[str]


def test_the_page_of_a_small_recipe_is_complete(recipe: Path, capsys: Captured) -> None:
    """A router of 2·4 + 4 and four experts of 2 + 1, all active."""
    assert main(["params", str(recipe)]) == 0
    assert capsys.readouterr().out == (
        f"{recipe}\n"
        "\n"
        "                  parameters  active per token\n"
        "  routers                 12                12\n"
        "  routed experts          12                12\n"
        "  total                   24                24\n"
        "\n"
        "active per token, by what is counted\n"
        "  with both embeddings         24  24  the paper's reading\n"
        "  without the input embedding  24  24\n"
        "  without either embedding     24  24\n"
        "\n"
        "On Tests\n"
        "          published  here\n"
        "  total          24    24\n"
        "  active         14    24  with both embeddings\n"
    )


@pytest.mark.parametrize(
    ("number", "published", "words"),
    [
        (96_603_000_000, "96.6B", "96.6B"),
        (316_541_440, "0.3B", "0.3B"),
        (1_571_300_000_000, "1571B", "1571B"),
        (272_896_000, "272.9M", "272.9M"),
        (24, "14", "24"),
        (37_600_000, "about 40M", "37.6M"),
        (37_600_000, "", "37.6M"),
    ],
)
def test_a_count_is_rounded_to_the_digits_of_the_published_one(number: int, published: str, words: str) -> None:
    assert rounded_like(number, published) == words


def test_a_published_total_without_embeddings_is_compared_with_that_reading(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "bare.yaml"
    file.write_text("extends: deepseek_v3\npaper: {total: 3.0M, total_reading: without_either}\n")
    assert main(["params", str(file)]) == 0
    count = count_parameters(load(file))
    last = capsys.readouterr().out.splitlines()[-2]
    bare = count.total - 2 * 256 * 128
    assert last.split()[1:] == ["3.0M", f"{bare / 1e6:.1f}M", *"without either embedding".split()]


def test_the_json_of_deepseek_v3_has_its_published_total(capsys: Captured) -> None:
    """671B is without multi-token prediction; 37B active is the reading without the input embedding."""
    assert main(["params", "deepseek_v3-671b", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["total"] == 671_026_419_200
    assert sum(plain["parts"].values()) == plain["total"]
    assert plain["active"]["both"] - plain["active"]["without_input"] == plain["parts"]["embedding"]
    assert plain["active"]["without_input"] - plain["active"]["without_either"] == plain["parts"]["head"]
    assert plain["training_alone"]["mtp"] > 11e9


def test_the_page_marks_the_papers_reading(capsys: Captured) -> None:
    assert main(["params", "deepseek_v3-671b"]) == 0
    out = capsys.readouterr().out
    marked = [line for line in out.splitlines() if line.endswith("the paper's reading")]
    assert len(marked) == 1
    assert marked[0].split("  ")[1] == READINGS["without_input"]
    assert "used only in training, not counted above\n  mtp " in out
    assert "671,026,419,200" in out


def test_overrides_change_the_count(recipe: Path, capsys: Captured) -> None:
    assert main(["params", str(recipe), "--json", "model.moe.experts.count=8"]) == 0
    count = count_parameters(load(recipe, ["model.moe.experts.count=8"]))
    assert json.loads(capsys.readouterr().out)["total"] == count.total == 48


def test_more_than_one_name_is_rejected(recipe: Path, capsys: Captured) -> None:
    assert main(["params", str(recipe), "jacobs1991"]) == 2
    assert capsys.readouterr().err == (
        f"error: moekit params: expected one name, then key=value, got {recipe}, jacobs1991\n"
        "  more: moekit params --help\n"
    )


@pytest.mark.parametrize("dim", [10**12, 10**19])
def test_a_model_too_large_to_be_counted_is_reported(dim: int, capsys: Captured) -> None:
    assert main(["params", "deepseek_v3", f"model.dim={dim}"]) == 2
    assert "some tensor would have 2**63 bytes or more\n  expected fewer or smaller layers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1_000, "1.0K"),
        (37_552_297_472, "37.6B"),
        (671_026_419_200, "671.0B"),
        (2 * 10**12, "2.0T"),
    ],
)
def test_counts_are_rounded_to_one_digit_and_a_unit(number: int, text: str) -> None:
    assert rounded(number) == text
