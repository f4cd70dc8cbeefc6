"""Layers, dispatch and routers side by side: which variants there are, that their work is equal, that they agree."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moekit.contracts import ExpertBank
from moekit.errors import MoekitError
from moekit.registry import current
from moekit_bench import layers
from moekit_bench.components import dispatchers_for
from moekit_bench.layers import (
    compare_dispatch,
    compare_layers,
    compare_routers,
    dense_variant,
    dispatcher_variant,
    explanations,
    plain_variant,
)
from moekit_bench.measure import Settings, Variant
from moekit_bench.request import Shape
from moekit_bench.saved import saved_for_backward
from moekit_bench.workload import Workload, build_in, counted_multiply_adds, make_workload

SHAPE = Shape(16, 8, 16, 8, 4)
ONE = Settings(rounds=1, warmup=1)


def loop_variant(work: Workload, experts: ExpertBank) -> Variant:
    spec = dispatchers_for(SHAPE, ["loop"]).specs["loop"]
    return dispatcher_variant("loop", build_in(spec, work.dims, "cpu", torch.float32), work, experts, spec)


def test_every_dispatcher_that_fits_is_measured_after_dense_and_plain() -> None:
    found = compare_layers("test", SHAPE, ONE)
    names = [row.name for row in found.rows]
    assert names[:2] == ["dense", "plain"]
    assert {*names[2:], *found.skips} == {component.name for component in current().components("dispatcher")}
    assert {"loop", "grouped", "capacity"} <= set(names)
    assert found.skips["soft"] == "takes soft, and the routing is token_choice"
    assert "needs 'groups'; needs 'inner'" in found.skips["device_capacity"]
    assert found.title == "test: 16 8 16 8 4"
    assert found.sizes == {"T": 16, "D": 8, "H": 16, "E": 8, "K": 4}
    assert found.explained == {}


def test_dropless_variants_agree() -> None:
    found = compare_layers("test", SHAPE, ONE, dispatchers=["loop,grouped", "{use: capacity, factor: 8.0}"])
    errors = {row.name: row.error for row in found.rows}
    assert errors.pop("dense") is None
    assert errors.pop("plain") is None
    assert set(errors) == {"loop", "grouped", "capacity(factor=8.0)"}
    assert all(error is not None and error < 1e-5 for error in errors.values())
    assert not any(row.dropped for row in found.rows)


def test_the_row_of_a_capacity_counts_its_drops() -> None:
    found = compare_layers("test", SHAPE, ONE, dispatchers=["{use: capacity, factor: 0.5}"])
    row = found.rows[-1]
    assert 0.4 < row.dropped < 1
    assert row.error is None


def test_variants_do_the_stated_number_of_multiply_adds() -> None:
    """Counted by torch while they run, forward and backward."""
    work = make_workload(SHAPE, "cpu", torch.float32)
    experts = work.experts()
    for variant in (dense_variant(work), loop_variant(work, experts)):
        with FlopCounterMode(display=False) as flops:
            y = variant.forward()
        assert flops.get_total_flops() // 2 == counted_multiply_adds(SHAPE)[0], variant.name
        with FlopCounterMode(display=False) as flops:
            torch.autograd.grad(y, list(variant.leaves), torch.ones_like(y))
        assert flops.get_total_flops() // 2 == 2 * counted_multiply_adds(SHAPE)[0], variant.name


def test_the_layer_by_hand_has_the_gradients_of_the_loop_dispatcher() -> None:
    work = make_workload(SHAPE, "cpu", torch.float32)
    experts = work.experts()
    loop = loop_variant(work, experts)
    plain = plain_variant(work, experts)
    assert [p.shape for p in loop.leaves] == [p.shape for p in plain.leaves]
    upstream_TO = torch.randn(SHAPE.T, SHAPE.D)
    gradients = [torch.autograd.grad(v.forward(), list(v.leaves), upstream_TO) for v in (loop, plain)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_dispatchers_with_identity_experts_agree() -> None:
    found = compare_dispatch("test", SHAPE, ONE, dispatchers=["loop,grouped"])
    assert [row.name for row in found.rows] == ["copy", "plain", "loop", "grouped"]
    assert found.baseline == "copy"
    assert [row.error is not None and row.error < 1e-5 for row in found.rows] == [False, True, True, True]
    assert not found.multiply_adds


def test_every_router_is_measured_after_plain() -> None:
    found = compare_routers("test", SHAPE, replace(ONE, memory=True))
    assert found.rows[0].name == found.baseline == "plain"
    routers = {component.name for component in current().components("router") if component.plugin == "routers"}
    assert {row.name for row in found.rows[1:]} == routers - {"hash"}
    assert found.skips == {"hash": "needs 'vocab'"}
    assert all(row.saved is not None for row in found.rows)


class Chooser:
    """A dispatcher that explains what it chooses."""

    def explain(self, x_TD: object, routing: object, experts: object) -> str:
        return "grouped, as there is a GPU"


def test_dispatchers_that_choose_are_asked_why() -> None:
    work = make_workload(SHAPE, "cpu", torch.float32)
    experts = work.experts()
    found = explanations({"chooser": Chooser(), "other": object()}, work, experts)
    assert found == {"chooser": "grouped, as there is a GPU"}


def test_explain_without_a_dispatcher_that_chooses_fails_before_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **more: object) -> None:
        raise AssertionError("nothing may be timed before a mistake is reported")

    monkeypatch.setattr(layers, "measure", never)
    with pytest.raises(MoekitError, match="none of loop chooses for itself"):
        compare_layers("test", SHAPE, replace(ONE, explain=True), dispatchers=["loop"])


def test_the_dense_layer_saves_tokens_and_four_hidden_arrays() -> None:
    """x; gate and up as one array of 2·K·H a token; silu(gate); their product."""
    T, D, H, _, K = shape = Shape(8, 4, 6, 4, 2)
    work = make_workload(shape, "cpu", torch.float32)
    dense = dense_variant(work)
    found = saved_for_backward(dense.forward, dense.weights)
    assert found.bytes == 4 * (T * D + T * 2 * K * H + T * K * H + T * K * H)
