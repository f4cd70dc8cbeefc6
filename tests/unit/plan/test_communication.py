"""What a device sends, computed by hand for five weights on four devices; rows counted over real routings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from plan_cases import REQUEST, SPEC, USE, WEIGHTS

from moekit import LayerDims
from moekit.registry import build
from moekit_plan.communication import layer_traffic, traffic_of
from moekit_plan.reach import ranks_of
from moekit_plan.traffic import rows_of
from moekit_plan.weight_bytes import Layout
from moekit_routers.topk import TopK

T = 4096


def test_bytes_of_gathered_weights_and_scattered_gradients() -> None:
    """A rank does not send its own shard. All blocks but the last are gathered twice; frozen weights have no gradient;
    sums are fp32.
    """
    layers = {"blocks.1.moe": (SPEC, USE)}
    sent = traffic_of(Layout(devices=4, ep=2), replace(REQUEST, precision="bf16-true"), WEIGHTS, layers, "none")
    blocks = 384 * 3 / 4 + 128 * 3 / 4 + 512 / 2 + 384 * 3 / 4
    assert sent.gathers == 3 * 2 * (768 * 3 / 4 + 2 * blocks - 384 * 3 / 4)
    assert sent.scatters == 3 * 4 * (768 * 3 / 4 + blocks - 128 * 3 / 4)
    # Three blocks, and the bank and router of the MoE layer: gathered twice, but the last block once; scattered once;
    # the embedding once each.
    assert sent.collectives == 3 * (3 * 5 - 1 + 2)
    assert traffic_of(Layout(devices=4, ep=4), REQUEST, WEIGHTS, layers, "none").collectives == 3 * (3 * 3 - 1 + 2)
    assert traffic_of(Layout(devices=1, ep=1), REQUEST, WEIGHTS, layers, "none").collectives == 0


def test_bytes_of_a_replicated_dense_part_and_of_gradients_that_are_reduced_once_in_a_step() -> None:
    """Three trained matrices outside of the bank, and how many ranks have the gradient of each: one message."""
    layers = {"blocks.1.moe": (SPEC, USE)}
    half = replace(REQUEST, precision="bf16-true")
    layout = Layout(devices=4, ep=2, replicated=True)
    each = traffic_of(layout, half, WEIGHTS, layers, "none")
    assert (each.gathers, each.scatters) == (3 * 2 * 512 / 2, 3 * 4 * 512 / 2)  # of the last block with shards
    assert each.sums == 2 * 4 * (3 + 768 + 384 + 384) * 3 / 4 and each.collectives == 3 * 2 + 1
    rounded = [replace(w, rounded=w.experts > 0) for w in WEIGHTS]
    assert traffic_of(layout, REQUEST, rounded, layers, "none").gathers == each.gathers  # bf16-mixed: of a bank in bf16
    assert traffic_of(layout, REQUEST, WEIGHTS, layers, "none").gathers == 2 * each.gathers
    once = traffic_of(layout, replace(half, reduce="step"), WEIGHTS, layers, "none")
    assert (once.gathers, once.scatters, once.sums) == (each.gathers, each.scatters / 3, each.sums)
    assert once.collectives == 3 + 1 + 1
    alone = traffic_of(Layout(devices=1, ep=1, replicated=True), half, WEIGHTS, layers, "none")
    assert (alone.sums, alone.collectives) == (0, 0)


@pytest.mark.parametrize(("element_bytes", "gate"), [(2, 4), (8, 8)])
def test_bytes_of_tokens_with_gates_and_expert_numbers(element_bytes: int, gate: int) -> None:
    """Four ranks have two experts each, so a row of three choices names two. 20 of 56 choices miss a rank."""
    use = replace(USE, element_bytes=element_bytes)
    rows = 3 * (1 - 20 / 56)
    there, back = 16 * element_bytes, 12 * 4
    forward = rows * (there + 2 * gate + 2 * 4 + back) + 3 * 16 / 10  # counts to three ranks, once for ten tokens
    backward = rows * (back + there + 2 * gate)
    once, twice = (layer_traffic(SPEC, use, 4, 3, recompute=recompute) for recompute in (False, True))
    assert once.rows == pytest.approx(rows) and once.reached == pytest.approx(rows * 4 / 3)
    assert once.bytes_per_token == pytest.approx(forward + backward)
    assert twice.bytes_per_token == pytest.approx(2 * forward + backward)
    assert once.bytes == pytest.approx(3 * 10 * once.bytes_per_token)
    assert (once.messages, twice.messages) == (3 * (15 + 9), 3 * (2 * 15 + 9))


@pytest.mark.parametrize(("recompute", "again"), [("none", 0), ("experts", 1), ("blocks", 1)])
def test_recomputed_experts_get_their_tokens_once_more(recompute: str, again: int) -> None:
    sent = traffic_of(Layout(devices=4, ep=4), REQUEST, WEIGHTS, {"blocks.1.moe": (SPEC, USE)}, recompute)
    assert sent.messages == 3 * (15 * (1 + again) + 9)


@pytest.mark.parametrize("ep", [2, 4, 8])
@pytest.mark.parametrize(("E", "K"), [(64, 6), (16, 2), (16, 1)])
def test_expected_rows_of_free_choices_match_a_real_router(E: int, K: int, ep: int) -> None:
    """Within 2 %: by chance, a router prefers some experts."""
    spec = TopK(top_k=K)
    assert counted(spec, E, ep) == pytest.approx(ranks_of(spec, E, ep) * (ep - 1) / ep, rel=0.02)


@pytest.mark.parametrize("ep", [2, 4, 8, 16])
def test_expected_rows_of_limited_groups_are_slightly_too_few(ep: int) -> None:
    """A group is chosen for its best experts, so a token reaches slightly more ranks than with random groups."""
    spec = TopK(top_k=8, score="sigmoid", groups=8, top_groups=4, group_score="top2_sum", renormalize=True)
    expected = ranks_of(spec, 64, ep) * (ep - 1) / ep
    assert expected <= counted(spec, 64, ep) < 1.1 * expected


def counted(spec: TopK, E: int, ep: int) -> float:
    """Rows per token, mean over the ranks that it could be on."""
    torch.manual_seed(1)
    routing = build(spec, LayerDims(dim=256, num_experts=E))(torch.randn(T, 256))
    return sum(rows_of(routing, ep, rank) for rank in range(ep)) / ep / T
