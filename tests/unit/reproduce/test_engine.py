"""The engine: every arm's rate is searched in the same way, seeds are paired, and nothing is measured twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fake_study
import pytest

from moekit.errors import MoekitError
from moekit_reproduce.engine import Engine, Progress, by_seed, planned, seed_of
from moekit_reproduce.papers.switch import Switch
from moekit_reproduce.store import Store
from moekit_reproduce.study import Found, Study

SPEC = Switch(seeds=2)


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    fake_study.calls.clear()
    before = dict(fake_study.best_rates)
    yield
    fake_study.best_rates.update(before)


def run(study: Study, folder: Path, spec: Switch = SPEC) -> tuple[dict[str, Found], list[tuple[str, bool]]]:
    lines: list[tuple[str, bool]] = []
    progress = Progress(step=lambda words: None, done=lambda line, kept: lines.append((line, kept)))
    return Engine(study, spec, Store(folder), progress).run(), lines


@pytest.mark.parametrize(
    ("best", "tried", "chosen"),
    [
        (20.0, [10, 20, 40], 20),
        (80.0, [10, 20, 40, 80, 160], 80),
        (5.0, [2.5, 5, 10, 20, 40], 5),
        (2560.0, [10, 20, 40, 80, 160], 160),  # far beyond the end: the search stops after two more
        (0.01, [2.5, 5, 10, 20, 40], 2.5),
    ],
)
def test_a_search_continues_beyond_its_end_while_the_best_is_there(
    tmp_path: Path, best: float, tried: list[float], chosen: float
) -> None:
    fake_study.best_rates["a"] = best
    found, _ = run(fake_study.study(), tmp_path)
    assert (list(found["a"].tried), found["a"].rate) == (tried, chosen)


def test_searches_use_seeds_that_are_not_measured(tmp_path: Path) -> None:
    run(fake_study.study(), tmp_path)
    searched = {seed for _, _, seed in fake_study.calls if seed < 1}
    assert searched == {0}
    assert len({seed_of(seed) for seed in range(-3, 4)}) == 7
    measured = [(arm, seed) for arm, _, seed in fake_study.calls if seed > 0]
    assert measured == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_an_arm_may_take_anothers_rate_and_raise_it(tmp_path: Path) -> None:
    fake_study.best_rates["a"] = 20.0
    found, _ = run(fake_study.study(follower=True), tmp_path)
    assert (found["a"].rate, found["b"].rate, found["b"].tried) == (20.0, 40.0, {})


def test_an_arm_cannot_take_the_rate_of_one_that_takes_a_rate(tmp_path: Path) -> None:
    study = fake_study.study(follower=True)
    from dataclasses import replace

    third = replace(study.arms[1], name="c", rate_of="b")
    with pytest.raises(MoekitError, match="arm 'c' takes the rate of 'b', which searches none"):
        run(replace(study, arms=(*study.arms, third)), tmp_path)


def test_without_search_the_middle_rate_is_taken(tmp_path: Path) -> None:
    found, _ = run(fake_study.study(), tmp_path, Switch(seeds=2, tune=False))
    assert found["a"].rate == 20.0 and len(fake_study.calls) == 4


def test_what_is_measured_already_is_not_measured_again(tmp_path: Path) -> None:
    first, lines = run(fake_study.study(), tmp_path)
    assert not any(kept for _, kept in lines)
    count = len(fake_study.calls)
    second, lines = run(fake_study.study(), tmp_path)
    assert len(fake_study.calls) == count and all(kept for _, kept in lines)
    assert {name: dict(of.values) for name, of in first.items()} == {
        name: {
            seed: {**values, "curve": [tuple(pair) for pair in values["curve"]]} for seed, values in of.values.items()
        }
        for name, of in second.items()
    }
    run(fake_study.study(), tmp_path, Switch(seeds=3))
    assert len(fake_study.calls) == count + 2  # one more seed of two arms


def test_a_measure_that_fails_keeps_what_was_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fake_study.measure

    def fail(recipe: object, arm: object, seed: int, report: object) -> dict[str, object]:
        if len(fake_study.calls) == 5:
            raise KeyboardInterrupt("stop")
        return whole(recipe, arm, seed, report)  # type: ignore[arg-type]

    monkeypatch.setattr(fake_study, "measure", fail)
    with pytest.raises(KeyboardInterrupt, match="stop"):
        run(fake_study.study(), tmp_path)
    monkeypatch.setattr(fake_study, "measure", whole)
    _, lines = run(fake_study.study(), tmp_path)
    assert sum(kept for _, kept in lines) == 5
    assert len(set(fake_study.calls)) == len(fake_study.calls)


def test_a_raised_version_measures_again(tmp_path: Path) -> None:
    from dataclasses import replace

    run(fake_study.study(), tmp_path)
    count = len(fake_study.calls)
    run(replace(fake_study.study(), version=2), tmp_path)
    assert len(fake_study.calls) == 2 * count


def test_values_are_paired_by_seed(tmp_path: Path) -> None:
    found, _ = run(fake_study.study(), tmp_path)
    seen = by_seed(found)
    assert [each["a"]["loss"] - each["b"]["loss"] for each in seen] == pytest.approx([0.1, 0.1])


def test_the_number_of_measurements_is_known_before() -> None:
    assert planned(fake_study.study(), SPEC) == 2 * 3 + 2 * 2
    assert planned(fake_study.study(), Switch(seeds=5, tune=False)) == 2 * 5
