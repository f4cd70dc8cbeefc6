"""What a sweep is to run: its axes, its points, its mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moekit.cli import main
from moekit.errors import MoekitError
from moekit_report.sweeping import Trial, parse, plan, planned


def test_the_grid_is_every_combination_seed_by_seed() -> None:
    sweep = parse("switch", ["optimizer.lr=1e-3,3e-3", "trainer.max_steps=4", "data.seq=8,16"], seeds=2)
    trials = sweep.trials()
    assert sweep.overrides == ("trainer.max_steps=4",)
    assert [trial.name for trial in trials[:4]] == [
        "lr=1e-3,seq=8,seed=0", "lr=1e-3,seq=16,seed=0", "lr=3e-3,seq=8,seed=0", "lr=3e-3,seq=16,seed=0",
    ]  # fmt: skip
    assert len(trials) == 8 and all(trial.seed == 1 for trial in trials[4:])
    assert Trial(options=("model.moe.router={use: topk}",), seed=0).name == "router=_use__topk_,seed=0"
    assert trials[1].options == ("optimizer.lr=1e-3", "data.seq=16")


def test_a_random_search_takes_points_of_the_grid_the_same_every_time() -> None:
    sweep = parse("switch", ["a=1,2,3,4,5", "b=1,2,3,4,5"], seeds=2, sample=6)
    trials = sweep.trials()
    assert trials == sweep.trials() and len(trials) == len(set(trials)) == 12
    assert {trial.options for trial in trials if trial.seed == 0} == {t.options for t in trials if t.seed == 1}


def test_a_random_search_draws_from_ranges_on_their_scale() -> None:
    sweep = parse("switch", ["a.lr=1e-4..1e-2", "a.k=1..4", "a.use=x,y"], seeds=1, sample=200)
    points = [dict(option.split("=") for option in options) for options in sweep.points()]
    assert sweep.points() == sweep.points() and len({tuple(point.items()) for point in points}) == 200
    assert {point["a.k"] for point in points} == {"1", "2", "3", "4"} and {point["a.use"] for point in points} == {
        "x",
        "y",
    }
    rates = [float(point["a.lr"]) for point in points]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert 80 < sum(rate < 1e-3 for rate in rates) < 120  # half of the decades
    assert all(float(f"{rate:.4g}") == rate for rate in rates)
    few = parse("switch", ["a.k=1..4"], seeds=1, sample=9)
    assert sorted(few.points()) == [("a.k=1",), ("a.k=2",), ("a.k=3",), ("a.k=4",)]


def test_examples_have_every_value_and_both_ends_of_ranges() -> None:
    sweep = parse("switch", ["a.lr=1e-4..1e-2", "a.use=x,y"], seeds=1, tpe=5)
    assert sweep.points() == [] and sweep.is_guided
    assert sweep.examples() == [
        ("a.lr=0.0001", "a.use=x"), ("a.lr=0.01", "a.use=x"), ("a.lr=0.0001", "a.use=y"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "seeds", "why"),
    [
        (["lr"], 1, "'lr' is not an option"),
        (["lr=1"], 1, "the sweep has one run"),
        (["seed=1,2"], 1, "a sweep counts seeds itself"),
        (["a.x=1,2"], 0, "expected 1 seed or more"),
        (["a.x={1},[1]"], 1, "would have the same name"),
        (["a.x=1..3"], 1, "a.x has a range, of which no grid is made"),
        (["a.x=1,2..3"], 1, "has the range 2..3 among values"),
        (["a.x=3..1"], 1, "'3..1' is not a range"),
    ],
)
def test_mistakes_are_named(given: list[str], seeds: int, why: str) -> None:
    with pytest.raises(MoekitError, match=why):
        parse("switch", given, seeds=seeds)


def test_searches_exclude_each_other_and_need_an_axis() -> None:
    with pytest.raises(MoekitError, match="--random and --tpe exclude each other"):
        parse("switch", ["a.x=1,2"], seeds=1, sample=2, tpe=2)
    with pytest.raises(MoekitError, match="--tpe has nothing to search"):
        parse("switch", [], seeds=2, tpe=2)


def test_a_folder_has_one_sweep(tmp_path: Path) -> None:
    one, two = (parse("switch", [f"x={values}"], seeds=1) for values in ("1,2", "1,3"))
    assert planned(tmp_path) is None
    plan(tmp_path, one)
    plan(tmp_path, one)
    assert planned(tmp_path) == one
    with pytest.raises(MoekitError, match="has another sweep"):
        plan(tmp_path, two)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(MoekitError, match=r"sweep\.json is damaged"):
        planned(tmp_path)


def test_a_recipe_with_a_mistake_is_refused_before_anything_is_run(tmp_path: Path, capsys: Any) -> None:
    assert main(["sweep", "switch", "model.moe.router.top_k=1,99", "--out", str(tmp_path)]) != 0
    assert "top_k" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
