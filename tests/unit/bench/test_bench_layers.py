"""Layers, dispatch and routers side by side: who is there, that they do equal work, that they agree."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moekit.bench import layer
from moekit.bench.dispatch import compare_dispatch
from moekit.bench.layer import compare_layers, dense_variant, dispatched, explanations, plain_variant
from moekit.bench.measure import Settings
from moekit.bench.parts import dispatchers_for, nodes_of, routers_for
from moekit.bench.router import compare_routers
from moekit.bench.shapes import SHAPES, Shape
from moekit.bench.work import IdentityExperts, build_in, counted_work, make_work, plain_dispatch, sparse_spec
from moekit.contracts.layer import UniformGroups
from moekit.errors import MoekitError, SpecError
from moekit.registry import current
from moekit.spec.kinds import DispatcherSpec

SHAPE = Shape(16, 8, 16, 8, 4)
ONE = Settings(rounds=1, warmup=1)


def able(kind: str) -> set[str]:
    """Dispatchers that need no options and carry what tokens chose."""
    specs = [(c.name, c.spec) for c in current().components(kind)]
    return {
        name for name, spec in specs if name not in ("soft", "device_capacity") and issubclass(spec, DispatcherSpec)
    }


def test_every_dispatcher_that_fits_is_there_after_dense_and_plain() -> None:
    found = compare_layers("test", SHAPE, ONE)
    names = [row.name for row in found.rows]
    assert names[:2] == ["dense", "plain"]
    assert set(names[2:]) | {name for name in found.skips if name in able("dispatcher")} == able("dispatcher")
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


def test_what_a_capacity_drops_is_told() -> None:
    found = compare_layers("test", SHAPE, ONE, dispatchers=["{use: capacity, factor: 0.5}"])
    row = found.rows[-1]
    assert 0.4 < row.dropped < 1
    assert row.error is None


@pytest.mark.parametrize("name", SHAPES)
def test_sparse_and_dense_are_of_equal_work(name: str) -> None:
    T, D, H, _, K = SHAPES[name]
    assert counted_work(SHAPES[name]) == (3 * T * K * D * H,) * 2


def test_the_variants_do_the_work_that_is_stated() -> None:
    """Counted as they run, forward and backward, by every product that torch sees."""
    work = make_work(SHAPE, "cpu", torch.float32)
    experts = build_in(sparse_spec(SHAPE), work.dims, "cpu", torch.float32)
    spec = dispatchers_for(SHAPE, ["loop"]).specs["loop"]
    loop = dispatched("loop", build_in(spec, work.dims, "cpu", torch.float32), work, experts, spec)
    for variant in (dense_variant(work, ONE), loop):
        with FlopCounterMode(display=False) as flops:
            y = variant.forward()
        assert flops.get_total_flops() // 2 == counted_work(SHAPE)[0], variant.name
        with FlopCounterMode(display=False) as flops:
            torch.autograd.grad(y, list(variant.leaves), torch.ones_like(y))
        assert flops.get_total_flops() // 2 == 2 * counted_work(SHAPE)[0], variant.name


def test_gradients_by_hand_are_those_of_the_loop() -> None:
    work = make_work(SHAPE, "cpu", torch.float32)
    experts = build_in(sparse_spec(SHAPE), work.dims, "cpu", torch.float32)
    spec = dispatchers_for(SHAPE, ["loop"]).specs["loop"]
    loop = dispatched("loop", build_in(spec, work.dims, "cpu", torch.float32), work, experts, spec)
    plain = plain_variant(work, experts)
    assert [p.shape for p in loop.leaves] == [p.shape for p in plain.leaves]
    upstream_TO = torch.randn(SHAPE.T, SHAPE.D)
    gradients = [torch.autograd.grad(v.forward(), list(v.leaves), upstream_TO) for v in (loop, plain)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_routing_is_the_same_each_time_and_its_gates_are_a_leaf() -> None:
    one, other = (make_work(SHAPE, "cpu", torch.float32) for _ in range(2))
    torch.testing.assert_close(one.x_TD, other.x_TD, rtol=0, atol=0)
    assert torch.equal(one.routing.expert_TK, other.routing.expert_TK)
    assert one.gate_TK.is_leaf and one.gate_TK.requires_grad


def test_weights_are_made_in_their_dtype() -> None:
    work = make_work(SHAPE, "cpu", torch.bfloat16)
    experts = build_in(sparse_spec(SHAPE), work.dims, "cpu", torch.bfloat16)
    assert {p.dtype for p in experts.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


def test_dispatch_alone() -> None:
    found = compare_dispatch("test", SHAPE, ONE, dispatchers=["loop,grouped"])
    assert [row.name for row in found.rows] == ["copy", "plain", "loop", "grouped"]
    assert found.baseline == "copy"
    assert [row.error is not None and row.error < 1e-5 for row in found.rows] == [False, True, True, True]
    assert not found.multiply_adds


def test_identity_experts_are_the_weighted_sum_of_the_tokens_themselves() -> None:
    work = make_work(SHAPE, "cpu", torch.float32)
    y_TO = plain_dispatch(work.x_TD, work.routing.expert_TK, work.gate_TK, SHAPE.E)
    torch.testing.assert_close(y_TO, work.x_TD * work.gate_TK.sum(1, keepdim=True))
    assert torch.equal(IdentityExperts(work.dims)(work.x_TD, UniformGroups(1, 16)), work.x_TD)


def test_every_router_chooses_k_of_e() -> None:
    found = compare_routers("test", SHAPE, replace(ONE, memory=True))
    assert found.rows[0].name == found.baseline == "plain"
    routers = {component.name for component in current().components("router") if component.plugin == "routers"}
    assert {row.name for row in found.rows[1:]} == routers
    assert not found.skips
    assert all(row.saved is not None for row in found.rows)


def test_routers_get_their_k_unless_they_are_told_another() -> None:
    specs: dict[str, Any] = routers_for(SHAPE, ["topk", "{use: topk, top_k: 1}", "dense"]).specs
    assert specs["topk"].top_k == 4
    assert specs["topk(top_k=1)"].top_k == 1
    assert routers_for(SHAPE, []).specs["hierarchical"].active(8) == 4
    assert "hierarchical" in routers_for(SHAPE._replace(K=2), []).skips


def test_what_names_and_yaml_mean() -> None:
    assert nodes_of(["a, b", "{use: c, d: 1e-3}"], "routers") == {
        "a": {"use": "a"},
        "b": {"use": "b"},
        "c(d=0.001)": {"use": "c", "d": 1e-3},
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "in --routers {"),
        ("{use: [}", "not valid YAML"),
        ("{a: 1}", "--routers '{a: 1}' is no part: it has no 'use'"),
        ("{use:topk}", "is no part"),
        (" , ", "--routers ' , ' names nothing"),
        ("", "--routers '' names nothing"),
    ],
)
def test_what_names_no_part(text: str, said: str) -> None:
    with pytest.raises(MoekitError, match=re.escape(said)):
        nodes_of([text], "routers")


def test_a_dispatcher_that_was_asked_for_must_fit() -> None:
    with pytest.raises(MoekitError, match="--dispatchers soft: takes soft"):
        dispatchers_for(SHAPE, ["soft"])
    with pytest.raises(SpecError, match="groups"):
        dispatchers_for(SHAPE, ["device_capacity"])
    with pytest.raises(MoekitError, match="did you mean 'grouped'"):
        dispatchers_for(SHAPE, ["gruoped"])
    with pytest.raises(MoekitError, match="does not divide the 8 experts"):
        dispatchers_for(SHAPE, ["{use: device_capacity, groups: 3, inner: loop}"])
    with pytest.raises(MoekitError, match=r"factor: 'x' is not a number(.|\n)*at factor  in --dispatchers capacity"):
        dispatchers_for(SHAPE, ["{use: capacity, factor: x}"])
    with pytest.raises(MoekitError, match="top_k=9 is more than the 8 experts"):
        routers_for(SHAPE, ["{use: topk, top_k: 9}"])
    with pytest.raises(MoekitError, match=r"unknown router 'topp'(.|\n)*  in --routers topp\n"):
        routers_for(SHAPE, ["topp"])


class Chooser:
    """A dispatcher that explains itself."""

    def explain(self, x_TD: object, routing: object, experts: object) -> str:
        return "grouped, as there is a GPU"


def test_whoever_chooses_for_himself_is_asked_why() -> None:
    work = make_work(SHAPE, "cpu", torch.float32)
    experts = build_in(sparse_spec(SHAPE), work.dims, "cpu", torch.float32)
    found = explanations({"chooser": Chooser(), "other": object()}, work, experts)
    assert found == {"chooser": "grouped, as there is a GPU"}


def test_nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **more: object) -> None:
        raise AssertionError("nothing is timed before a mistake is told")

    monkeypatch.setattr(layer, "measure", never)
    with pytest.raises(MoekitError, match="none of loop chooses for itself"):
        compare_layers("test", SHAPE, replace(ONE, explain=True), dispatchers=["loop"])
