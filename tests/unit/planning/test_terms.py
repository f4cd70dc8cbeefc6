"""Every term of a plan, worked out by hand for five weights on four devices: one process shows few of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moekit import load
from moekit.planning import request as asking
from moekit.planning.activations import REST, LayerUse, Pass
from moekit.planning.communication import layer_wire, wire_of
from moekit.planning.plan import Memory, Planner
from moekit.planning.request import Request, eps_of
from moekit.planning.weight_bytes import Layout, Weight
from moekit.spec.kinds import MoE
from moekit_dispatchers.grouped import Grouped
from moekit_experts.glu import Glu
from moekit_routers.topk import TopK

WEIGHTS = [
    Weight(name="embedding.weight", shape=(48, 16), experts=0, unit=-1, trained=True),  # 768
    Weight(name="blocks.0.ffn.w_up", shape=(1, 24, 16), experts=0, unit=0, trained=True),  # 384
    Weight(name="blocks.1.moe.router.weight", shape=(8, 16), experts=0, unit=1, trained=False),  # 128
    Weight(name="blocks.1.moe.experts.w_up", shape=(8, 8, 16), experts=8, unit=1, trained=True),  # 1024
    Weight(name="blocks.2.ffn.w_up", shape=(1, 24, 16), experts=0, unit=2, trained=True),  # 384
]
SPEC = MoE(router=TopK(top_k=3), experts=Glu(count=8, hidden=8), dispatcher=Grouped())
USE = LayerUse(tokens=10, dim=16, out_dim=12, element=2, out_element=4)
REQUEST = Request(
    devices=4, eps=(2,), batch=1, sequence=10, accumulate=3, precision="bf16-mixed", device_memory=2**30
)  # fmt: skip


def memory(weights: list[Weight], *, ep: int = 2, copies: int = 800, monkeypatch: pytest.MonkeyPatch) -> Memory:
    planner = Planner(load("deepseek_v3", ["model.depth=2", "model.mtp=null"]))
    few = {**dict.fromkeys(("blocks.1.moe", "less"), USE), "less": replace(USE, tokens=9)}
    passed = Pass(kept={"blocks.0": 1000, REST: 300}, peak=5000, copies=copies, layers=few)
    planner.weights, planner.buffers, planner.mixtures = weights, 12, dict.fromkeys(few, SPEC)
    monkeypatch.setattr(planner, "seen", lambda *_: passed)
    monkeypatch.setattr(planner, "states", lambda *_: {})
    return planner.plan(replace(REQUEST, eps=(ep,)), "none").rows[0].memory


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of four share experts: 4 of 8, cut over two; all else over four. Numbers of 4 bytes, computed in bf16."""
    reached = 2 * (1 - 4 / 56)  # of two ranks; 4 of the 56 choices of three miss one that holds four
    assert memory(WEIGHTS, monkeypatch=monkeypatch) == Memory(
        parameters=(192 + 96 + 32 + 256 + 96) * 4 + 12,
        gradients=(192 + 96 + 256 + 96) * 4,  # the router is not trained
        optimizer=0,
        gathered=(768 + 2 * (128 + 512)) * 4,  # what is in no block, the largest block, and the next
        gathered_gradients=(768 + 128 + 512) * 4,
        copies=800 // 2,
        activations=1000,
        outside=300,
        at_work=5000 - 1300,
        exchange=round(2 * reached * 10 * 12 * 4),  # one buffer to send from, one to receive into; 48 bytes a row
    )


def test_no_more_is_gathered_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory(WEIGHTS[:-1], monkeypatch=monkeypatch).gathered == (768 + 384 + 128 + 512) * 4
    alone = memory(WEIGHTS[:-1], ep=4, monkeypatch=monkeypatch)  # experts that no other rank has are not gathered
    assert alone.gathered == (768 + 384 + 128) * 4 and alone.gathered_gradients == (768 + 384) * 4


def test_copies_that_are_not_kept_are_those_of_one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a device's own experts, in bf16."""
    two = [*WEIGHTS, replace(WEIGHTS[3], name="blocks.2.moe.experts.w_up", unit=2)]
    assert memory(two, copies=0, monkeypatch=monkeypatch).copies == 512 * 2


def test_weights_and_gradients_on_the_wire() -> None:
    """Own parts stay; blocks are gathered twice; frozen weights have no gradient; bf16 is added up in fp32."""
    layers = {"blocks.1.moe": (SPEC, USE)}
    wire = wire_of(Layout(devices=4, ep=2), replace(REQUEST, precision="bf16-true"), WEIGHTS, layers, "none")
    blocks = 384 * 3 / 4 + 128 * 3 / 4 + 512 / 2 + 384 * 3 / 4
    assert wire.gathers == 3 * 2 * (768 * 3 / 4 + 2 * blocks)
    assert wire.scatters == 3 * 4 * (768 * 3 / 4 + blocks - 128 * 3 / 4)
    # Three blocks, and of the mixture its bank and its router: twice gathered, once scattered; the embedding once each.
    assert wire.collectives == 3 * (3 * 5 + 2)
    assert wire_of(Layout(devices=4, ep=4), REQUEST, WEIGHTS, layers, "none").collectives == 3 * (3 * 3 + 2)
    assert wire_of(Layout(devices=1, ep=1), REQUEST, WEIGHTS, layers, "none").collectives == 0


@pytest.mark.parametrize(("element", "gate"), [(2, 4), (8, 8)])
def test_tokens_on_the_wire(element: int, gate: int) -> None:
    """Four ranks hold two experts each, so of three choices a row names two. 20 of 56 choices miss a rank."""
    use = replace(USE, element=element)
    rows = 3 * (1 - 20 / 56)
    there, back = 16 * element, 12 * 4
    forward = rows * (there + 2 * gate + 2 * 4 + back) + 3 * 16 / 10  # counts to three ranks, once for ten tokens
    backward = rows * (back + there + 2 * gate)
    once, twice = (layer_wire(SPEC, use, 4, 3, again=again) for again in (False, True))
    assert once.rows == pytest.approx(rows) and once.reached == pytest.approx(rows * 4 / 3)
    assert once.bytes_per_token == pytest.approx(forward + backward)
    assert twice.bytes_per_token == pytest.approx(2 * forward + backward)
    assert once.bytes == pytest.approx(3 * 10 * once.bytes_per_token)
    assert (once.messages, twice.messages) == (3 * (15 + 9), 3 * (2 * 15 + 9))


@pytest.mark.parametrize(("recompute", "again"), [("none", 0), ("experts", 1), ("blocks", 1)])
def test_tokens_travel_again_where_experts_are_computed_again(recompute: str, again: int) -> None:
    wire = wire_of(Layout(devices=4, ep=4), REQUEST, WEIGHTS, {"blocks.1.moe": (SPEC, USE)}, recompute)
    assert wire.messages == 3 * (15 * (1 + again) + 9)


def test_a_step_has_the_tokens_of_all_micro_batches_and_devices() -> None:
    assert replace(REQUEST, batch=5).tokens == 4 * 3 * 5 * 10


def test_a_layout_divides_the_experts_of_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    uneven = replace(SPEC, experts=Glu(count=12, hidden=8))
    monkeypatch.setattr(asking, "mixtures", lambda _: iter([SPEC, uneven]))
    assert eps_of(load("deepseek_v3"), 8) == (1, 2, 4)
