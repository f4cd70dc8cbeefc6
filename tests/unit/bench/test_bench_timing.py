"""Turns, ratios, and what is left out; with a clock that is made up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from moekit.bench.measure import Settings, measure
from moekit.bench.timing import CpuClock, Variant, ratio, take_turns


class Ticks:
    """Every mark is one second later than the last."""

    def __init__(self) -> None:
        self.now = 0
        self.settled = 0

    def mark(self) -> int:
        self.now += 1
        return self.now

    def seconds(self, start: int, end: int) -> float:
        return float(end - start)

    def settle(self) -> None:
        self.settled += 1


def variant(name: str, log: list[str] | None = None, **more: Any) -> Variant:
    x = torch.ones(3, requires_grad=True)

    def forward() -> Tensor:
        if log is not None:
            log.append(name)
        return x * 2

    return Variant(**{"name": name, "forward": forward, "leaves": [x], **more})


def quiet(text: str) -> None:
    pass


def test_every_variant_runs_once_a_round_and_another_begins_each_time() -> None:
    log: list[str] = []
    names = ["a", "b", "c"]
    take_turns([variant(n, log) for n in names], rounds=2, warmup=1, clock=Ticks(), tell=quiet)
    assert log == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_only_rounds_after_the_warm_up_count() -> None:
    clock = Ticks()
    samples = take_turns([variant("a"), variant("b")], rounds=3, warmup=2, clock=clock, tell=quiet)
    assert samples["a"].forward == samples["b"].backward == [1.0] * 3
    assert samples["a"].total == [2.0] * 3
    assert clock.settled == 2 * 2 * 5


def test_it_tells_what_is_going_on() -> None:
    said: list[str] = []
    take_turns([variant("a")], rounds=1, warmup=1, clock=Ticks(), tell=said.append)
    assert said == ["warm-up, a", "round 1/1, a"]


def test_ratios() -> None:
    found = ratio([2.0, 3.0, 8.0], [1.0, 2.0, 2.0])
    assert (found.best, found.median, found.low, found.high) == (2.0, 2.0, 1.75, 3.0)
    one = ratio([3.0], [2.0])
    assert one.best == one.median == one.low == one.high == 1.5


def test_the_processors_clock_goes_on() -> None:
    clock = CpuClock()
    start = clock.mark()
    clock.settle()
    assert clock.seconds(start, clock.mark()) >= 0


def raises(error: Exception) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        raise error

    return forward


def test_a_variant_that_refuses_is_left_out_with_its_reason() -> None:
    broken = variant("b", forward=raises(RuntimeError("no kernel here\nand more")))
    rows, skips = measure([variant("a"), broken], Settings(rounds=1, warmup=1), baseline="a", pairs=3)
    assert [row.name for row in rows] == ["a"]
    assert skips == {"b": "RuntimeError: no kernel here"}


def test_a_baseline_that_does_not_run_ends_it() -> None:
    with pytest.raises(RuntimeError, match="no kernel"):
        measure([variant("a", forward=raises(RuntimeError("no kernel")))], Settings(), baseline="a", pairs=3)


def test_variants_of_one_function_are_held_to_each_other() -> None:
    x = torch.tensor([1.0, -4.0], requires_grad=True)
    others = [
        variant("dense", agrees=False),
        variant("first", forward=lambda: x * 1.0, leaves=[x]),
        variant("same", forward=lambda: x + 0.0, leaves=[x]),
        variant("off", forward=lambda: x + 1.0, leaves=[x]),
        variant("drops", forward=lambda: x + 9.0, leaves=[x], dropped=lambda: 1),
    ]
    rows, _ = measure(others, Settings(rounds=1, warmup=1), baseline="dense", pairs=4)
    assert {row.name: row.error for row in rows} == {
        "dense": None,
        "first": None,
        "same": 0,
        "off": 0.25,
        "drops": None,
    }
    assert {row.name: row.dropped for row in rows if row.dropped} == {"drops": 0.25}


def test_each_row_has_its_rounds_and_ratios() -> None:
    rows, _ = measure([variant("a"), variant("b")], Settings(rounds=3, warmup=1), baseline="a", pairs=3)
    for row in rows:
        assert set(row.seconds) == {"forward", "backward"}
        assert all(len(seconds) == 3 for seconds in row.seconds.values())
        assert row.saved is None
        assert row.peak is None
        assert row.ms <= 1e3 * min(f + b for f, b in zip(*row.seconds.values(), strict=True)) + 1e-9
        assert row.ratio.low <= row.ratio.median <= row.ratio.high
    assert rows[0].ratio.best == rows[0].forward_ratio.median == rows[0].backward_ratio.high == 1.0
