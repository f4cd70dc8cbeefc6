"""What a node sends to others, against every choice of experts and every hop of every ring written out."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from plan_cases import REQUEST, SPEC, USE, WEIGHTS, plan_of

from moekit import load
from moekit.errors import MoekitError
from moekit_plan.communication import layer_traffic
from moekit_plan.nodes import between_nodes
from moekit_plan.request import PlanRequest
from moekit_plan.weight_bytes import Layout
from moekit_routers.topk import TopK

LAYOUTS = [(8, 1, 2), (8, 2, 4), (8, 4, 4), (8, 4, 2), (8, 8, 2), (16, 8, 4), (4, 4, 1)]  # devices, ep, per node
LAYERS = {"blocks.1.moe": (SPEC, USE)}


def asked(devices: int, ep: int, per_node: int) -> PlanRequest:
    return replace(REQUEST, devices=devices, eps=(ep,), per_node=per_node)


@pytest.mark.parametrize(("devices", "ep", "per_node"), LAYOUTS)
def test_rows_to_other_nodes_are_the_mean_of_all_choices_on_all_ranks(devices: int, ep: int, per_node: int) -> None:
    found = between_nodes(Layout(devices=devices, ep=ep), asked(devices, ep, per_node), WEIGHTS, LAYERS, "none")
    held, every = 8 // ep, list(combinations(range(8), 3))
    remote = [
        len({owner for e in chosen if (owner := home - home % ep + e // held) // per_node != home // per_node})
        for home in range(devices)
        for chosen in every
    ]
    assert found.rows == pytest.approx(sum(remote) / len(remote), abs=1e-12)
    others, rows = max(ep - per_node, 0), 10 * found.rows
    there, back = 16 * 2, 12 * 4
    pair = 4 + 4  # a gate and an index
    choices = min(3, held)
    one = rows * (2 * there + 2 * back + choices * (pair + 4)) + others * 16
    assert found.exchanged == pytest.approx(per_node * 3 * one)


@pytest.mark.parametrize(("devices", "ep", "per_node"), LAYOUTS)
def test_weights_and_gradients_cross_nodes_wherever_a_ring_does(devices: int, ep: int, per_node: int) -> None:
    layout = Layout(devices=devices, ep=ep)
    gathers = scatters = 0.0
    for w in WEIGHTS:
        shared = w.experts and ep > 1
        rings = [range(i, devices, ep) for i in range(ep)] if shared else [range(devices)]
        numbers = 1
        for size in w.local_shape(layout):
            numbers *= size
        for ring in rings:
            hops = sum(a // per_node != b // per_node for a, b in zip(ring, [*ring[1:], ring[0]], strict=True))
            sent = hops * numbers * (len(ring) - 1) / len(ring) * 4
            gathers += sent * (1 if w.unit in (-1, 2) else 2)  # what is outside of blocks, and the last
            scatters += sent * w.trained
    found = between_nodes(layout, asked(devices, ep, per_node), WEIGHTS, LAYERS, "none")
    nodes = devices // per_node
    assert found.gathers == pytest.approx(3 * gathers / nodes)
    assert found.scatters == pytest.approx(3 * scatters / nodes)


def test_one_node_sends_nothing() -> None:
    found = between_nodes(Layout(devices=4, ep=4), asked(4, 4, 4), WEIGHTS, LAYERS, "blocks")
    assert (found.exchanged, found.rows, found.gathers, found.scatters) == (0, 0, 0, 0)


def test_a_router_that_limits_a_token_to_one_node_halves_the_rows_to_two() -> None:
    """With a rank a node: of two nodes a free token of many choices reaches both."""
    free, limited = (TopK(top_k=6, **more) for more in ({}, {"groups": 2, "top_groups": 1}))
    moe = replace(SPEC, experts=replace(SPEC.experts, count=16))
    rows = [layer_traffic(replace(moe, router=r), USE, 2, 1, recompute=False).rows for r in (free, limited)]
    assert rows[1] == 0.5 and rows[0] == pytest.approx(1 - 28 / 8008)


def test_every_layout_has_its_links_only_where_nodes_are_given() -> None:
    recipe = load("deepseek_v3", ["model.depth=2", "model.mtp=null"])
    assert all(row.links is None for row in plan_of(recipe, 8).rows)
    rows = plan_of(recipe, 8, (1, 4, 8), per_node=4).rows
    assert [bool(row.links and row.links.exchanged) for row in rows] == [False, False, True]


def test_nodes_that_do_not_divide_devices_or_expert_groups_are_rejected() -> None:
    with pytest.raises(MoekitError, match="8 devices are not nodes of 3\n  expected one of 1, 2, 4, 8"):
        asked(8, 1, 3)
    with pytest.raises(MoekitError, match="ep=3: expert groups would begin within nodes of 4 devices"):
        asked(12, 3, 4)
