"""Interleaved rounds, and rows of those variants that run; with a clock that counts its marks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from moekit_bench.layers import dense_variant, plain_variant
from moekit_bench.measure import Clock, Settings, Variant, measure, time_interleaved
from moekit_bench.request import Shape
from moekit_bench.workload import make_workload


class Ticks(Clock):
    """A clock whose marks are one second apart."""

    def __init__(self) -> None:
        super().__init__("cpu")
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


def test_every_variant_runs_once_a_round_and_each_round_starts_with_another() -> None:
    log: list[str] = []
    names = ["a", "b", "c"]
    time_interleaved([variant(n, log) for n in names], rounds=2, warmup=1, clock=Ticks(), on_progress=quiet)
    assert log == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_only_rounds_after_the_warm_up_count() -> None:
    clock = Ticks()
    samples = time_interleaved([variant("a"), variant("b")], rounds=3, warmup=2, clock=clock, on_progress=quiet)
    assert samples["a"].forward == samples["b"].backward == [1.0] * 3
    assert samples["a"].total == [2.0] * 3
    assert clock.settled == 2 * 2 * 5


def test_progress_names_the_round_and_the_variant() -> None:
    said: list[str] = []
    time_interleaved([variant("a")], rounds=1, warmup=1, clock=Ticks(), on_progress=said.append)
    assert said == ["warm-up, a", "round 1/1, a"]


def test_the_cpu_clock_never_runs_backwards() -> None:
    clock = Clock("cpu")
    start = clock.mark()
    clock.settle()
    assert clock.seconds(start, clock.mark()) >= 0


def raises(error: Exception) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        raise error

    return forward


def test_a_variant_that_fails_is_skipped_with_its_reason() -> None:
    broken = variant("b", forward=raises(RuntimeError("no kernel here\nand more")))
    rows, skips = measure([variant("a"), broken], Settings(rounds=1, warmup=1), baseline="a", pairs=3)
    assert [row.name for row in rows] == ["a"]
    assert skips == {"b": "RuntimeError: no kernel here"}


def test_a_baseline_that_fails_ends_the_measurement() -> None:
    with pytest.raises(RuntimeError, match="no kernel"):
        measure([variant("a", forward=raises(RuntimeError("no kernel")))], Settings(), baseline="a", pairs=3)


def test_outputs_of_variants_that_must_agree_are_compared() -> None:
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


def test_rows_have_memory_only_if_it_is_measured() -> None:
    work = make_workload(Shape(8, 4, 8, 4, 2), "cpu", torch.float32)
    settings = Settings(rounds=1, warmup=1, memory=True)
    rows, _ = measure([dense_variant(work), plain_variant(work, work.experts())], settings, baseline="dense", pairs=16)
    assert all(row.saved is not None and row.saved.bytes > work.input_bytes for row in rows)
    assert all(row.peak is None for row in rows), "the peak is a GPU's"
