"""The page of the field is what its generator makes of the recorded runs, and calls a tie a tie."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
sys.path.append(str(DOCS))

import make_lineage  # noqa: E402
from lineage_field import Field, Trial, recipes  # noqa: E402

RATES, SEEDS = (1e-3, 2e-3, 4e-3), (0, 1)


def run(value: float, steps: int = 320, seconds: float = 1.0, experts: float | None = None) -> dict[str, Any]:
    return {"value": value, "steps": steps, "step_seconds": seconds, "experts_per_token": experts}


def field(*runs: tuple[Trial, dict[str, Any]]) -> Field:
    return Field(rates=RATES, seeds=SEEDS, runs={trial.key: found for trial, found in runs})


def test_the_page_is_up_to_date() -> None:
    stored = make_lineage.PAGE.read_text(encoding="utf-8")
    assert make_lineage.page(make_lineage.stored()) == stored, "run: python docs/make_lineage.py"


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ({0: 1.9, 1: 1.91}, "-0.095 ± 0.007: better"),
        ({0: 2.1, 1: 2.11}, "+0.105 ± 0.007: worse"),
        ({0: 1.9, 1: 2.03}, "-0.035 ± 0.092: tie"),
        ({0: 1.9}, "-0.100 (one seed)"),
        ({2: 1.9}, "-"),
    ],
)
def test_a_difference_that_the_spread_covers_is_a_tie(ours: dict[int, float], said: str) -> None:
    """Runs of the same seed are compared."""
    assert make_lineage.verdict(ours, {0: 2.0, 1: 2.0}) == said


def test_first_rates_come_first_then_what_depends_on_the_best_then_other_rates_and_seeds() -> None:
    planned = list(field().planned())
    assert [trial.rate for trial in planned] == [2e-3] * len(recipes()) + [1e-3] * len(recipes()) + [4e-3] * len(
        recipes()
    )
    known = [(Trial(recipe=name, rate=rate, seed=0), run(3 + rate)) for name in recipes() for rate in (1e-3, 2e-3)]
    missing = [trial for trial in dict.fromkeys(field(*known).planned()) if trial.key not in field(*known).runs]
    changes = [trial for trial in missing if trial.change and trial.seed == 0]
    assert missing[: len(changes)] == changes and {trial.change for trial in changes} > {"no drops", "gated experts"}
    others = missing[len(changes) :]
    assert [trial.steps for trial in others[:2]] == [480, 640] and others[0].recipe == "dense"
    assert [trial.rate for trial in others[2:]][: len(recipes())] == [4e-3] * len(recipes())
    assert next(trial for trial in missing if trial.seed == 1) == Trial(recipe="dense", rate=1e-3, seed=1)


def test_a_dense_model_is_as_wide_as_the_work_that_a_mixture_executed() -> None:
    dense = Trial(recipe="dense", rate=2e-3, seed=0)
    half = field((dense, run(3.0)), (Trial(recipe="switch", rate=2e-3, seed=0), run(3.0, experts=0.5)))
    hidden = 216 * (1 + 3 * 0.5) / 4  # one of four layers is dense
    assert half.same_work("switch", 1) == Trial(recipe="dense", rate=2e-3, seed=1, hidden=round(hidden))
    whole = field((dense, run(3.0)), (Trial(recipe="switch", rate=2e-3, seed=0), run(3.0, experts=0.999)))
    assert whole.same_work("switch", 1) == Trial(recipe="dense", rate=2e-3, seed=1)
    assert half.same_work("dense", 0) is None and half.same_work("glam", 0) is None


def test_the_same_time_is_interpolated_in_the_logarithm_of_steps() -> None:
    dense = Trial(recipe="dense", rate=2e-3, seed=0)
    longer = field((dense, run(3.0))).longer(0)
    runs = [(dense, run(3.0)), (longer[0], run(2.8, 480)), (longer[1], run(2.7, 640))]
    switch = Trial(recipe="switch", rate=2e-3, seed=0)
    for times, value in ((1.0, 3.0), (1.5, 2.8), (3**0.5, 2.75), (2.0, 2.7)):
        found = make_lineage.Results(field=field(*runs, (switch, run(2.9, seconds=times)))).in_same_time("switch")
        assert found == {0: pytest.approx(value)}
    beyond = make_lineage.Results(field=field(*runs, (switch, run(2.9, seconds=2.5)))).in_same_time("switch")
    assert beyond == {}
