"""Advice where no layout fits: the smallest change that fits, in few passes."""

from __future__ import annotations

from plan_cases import GIB, plan_of, request_for

from moekit import load
from moekit_plan.advice import advise
from moekit_plan.plan import RunPlanner
from moekit_plan.request import MAX_COUNT


def test_advice_is_the_smallest_change_that_fits_or_the_nearest() -> None:
    recipe = load("deepseek_v3", ["model.depth=2", "model.mtp=null"])
    request = request_for(recipe, 4)
    planner = RunPlanner(recipe)
    plan = planner.plan(request, "none")
    least = min(row.memory.total for row in plan.rows)
    less = min(row.memory.total for row in planner.plan(request, "experts").rows)
    tight = planner.plan(request_for(recipe, 4, batch=2, device_memory=(least + less) // 2), "none")
    assert not any(map(tight.fits, tight.rows))
    (advice,) = advise(planner, tight)
    assert advice.fits and advice.what == "--recompute experts" and advice.row.memory.total == less
    hopeless = planner.plan(request_for(recipe, 4, device_memory=GIB // 1024), "none")
    (advice,) = advise(planner, hopeless)
    assert not advice.fits and "--recompute blocks --batch 1 --accumulate 2 --devices" in advice.what


def test_advice_finds_the_largest_micro_batch_in_few_passes() -> None:
    """Of 2^20 cases to one, in as many passes as a bisection takes."""
    recipe = load("jacobs1991")
    least = plan_of(recipe, batch=64).rows[0].memory.total
    passes: list[str] = []
    planner = RunPlanner(recipe, passes.append)
    plan = planner.plan(request_for(recipe, batch=2**20, device_memory=least), "")
    (advice,) = advise(planner, plan)
    assert advice.fits and advice.row.memory.total == least
    assert advice.what == f"--batch 64 --accumulate {2**20 // 64}"
    assert passes[0] == f"a pass over {2**20} x 16 tokens, recompute none"
    assert len(passes) <= 1 + 1 + 5  # the plan's own; the smallest; 19 others


def test_advice_keeps_the_tokens_of_a_step() -> None:
    recipe = load("jacobs1991")
    planner = RunPlanner(recipe)
    plan = planner.plan(request_for(recipe, batch=3, device_memory=plan_of(recipe, batch=1).rows[0].memory.total), "")
    assert [advice.what for advice in advise(planner, plan)] == ["--batch 1 --accumulate 3"]


def test_advice_stays_within_the_ranges_of_a_request() -> None:
    """Of devices and of micro-batches."""
    recipe = load("jacobs1991")
    planner = RunPlanner(recipe)
    plan = planner.plan(request_for(recipe, MAX_COUNT, batch=64, accumulate=MAX_COUNT // 6, device_memory=1), "")
    (advice,) = advise(planner, plan)
    assert not advice.fits and advice.what == f"--batch 16 --accumulate {MAX_COUNT // 6 * 4}"
