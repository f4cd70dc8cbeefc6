"""Requests of plans: their ranges, the layouts of a recipe, and what a recipe says of its batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan_cases import REQUEST, SPEC, request_for

from moekit import load
from moekit.errors import MoekitError
from moekit_experts.glu import Glu
from moekit_plan import request as request_module
from moekit_plan.request import PlanRequest, divisors, eps_of, precision_of, shape_of


def test_layouts_divide_devices_and_experts_and_others_are_rejected() -> None:
    recipe = load("deepseek_v3")
    assert eps_of(recipe, 12) == (1, 2, 4)
    assert eps_of(load("deepseek_moe-2b"), 9) == (1, 3, 9)  # 63 experts
    assert eps_of(load("jacobs1991"), 4) == (1,) == eps_of(load("base/language_model"), 4)
    with pytest.raises(
        MoekitError, match="ep=3 does not divide 12 devices and 64 experts evenly\n  expected one of 1, 2, 4"
    ):
        eps_of(recipe, 12, (3,))
    with pytest.raises(MoekitError, match="under soft routing"):
        eps_of(load("jacobs1991"), 4, (2,))
    with pytest.raises(MoekitError, match="no routed experts"):
        eps_of(load("base/language_model"), 4, (2,))


def test_divisors_of_huge_numbers_of_devices_are_found_at_once() -> None:
    assert eps_of(load("deepseek_v3"), 10**18 * 64) == (1, 2, 4, 8, 16, 32, 64)
    assert [divisors(n) for n in (1, 12, 36, 64)] == [
        [1], [1, 2, 3, 4, 6, 12], [1, 2, 3, 4, 6, 9, 12, 18, 36], [1, 2, 4, 8, 16, 32, 64]
    ]  # fmt: skip


def test_a_layout_divides_the_experts_of_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    uneven = replace(SPEC, experts=Glu(count=12, hidden=8))
    monkeypatch.setattr(request_module, "find_all", lambda *_: [SPEC, uneven])
    assert eps_of(load("deepseek_v3"), 8) == (1, 2, 4)


def test_batches_and_precision_are_the_recipes() -> None:
    assert shape_of(load("deepseek_v3")) == (16, 128) == shape_of(load("switch"))
    assert shape_of(load("deepseek_v3-671b")) == (1, 4096)
    assert precision_of(load("deepseek_v3", ["trainer.precision=bf16"])) == "bf16-mixed"


def test_requests_out_of_range_are_rejected() -> None:
    with pytest.raises(MoekitError, match="no plan for the precision 'fp8'\n  expected one of 32-true"):
        request_for(load("deepseek_v3"), precision="fp8")
    with pytest.raises(MoekitError, match="devices=0 is out of range\n  expected at least 1"):
        PlanRequest(devices=0, eps=(1,), batch=1, sequence=1, accumulate=1, precision="32-true", device_memory=1)
    with pytest.raises(MoekitError, match="batch=1000000000001 is out of range\n  expected at most 1000000000000"):
        request_for(load("jacobs1991"), batch=10**12 + 1)


def test_a_step_has_the_tokens_of_all_micro_batches_and_devices() -> None:
    assert replace(REQUEST, batch=5).tokens == 4 * 3 * 5 * 10
