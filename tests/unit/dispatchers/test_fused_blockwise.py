"""How rows are split into blocks, and the buffers that threads keep between passes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routings import best_of_random
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moekit.contracts import LayerDims
from moekit.routing import TokenChoice
from moekit_dispatchers.fused import Fused, thread_pool, workspace
from moekit_dispatchers.fused.blockwise import Plan, most_rows
from moekit_dispatchers.fused.module import FusedDispatcher
from moekit_dispatchers.fused.thread_pool import shares
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts

# ---- blocks -------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), max_size=12), most=st.integers(1, 9), threads=st.integers(1, 3))
def test_blocks_hold_every_row_once_in_order(sizes: list[int], most: int, threads: int) -> None:
    plan = Plan(sizes=sizes, shares=shares(sizes, threads), most=most, activation="silu", save="minimum")
    blocks = [block for share in plan.shares for block in plan.blocks(share)]
    assert all(sum(block.sizes) == block.rows <= most and all(block.sizes) for block in blocks)
    parts = [(e, size) for block in blocks for e, size in zip(block.experts, block.sizes, strict=True)]
    assert [e for e, size in parts for _ in range(size)] == [e for e, size in enumerate(sizes) for _ in range(size)]
    seen: set[int] = set()
    for block in blocks:
        assert block.first == seen.isdisjoint(block.experts)
        seen.update(block.experts)


def test_small_experts_share_a_block_and_large_ones_are_split() -> None:
    plan = Plan(sizes=[3, 0, 4, 9, 2], shares=shares([3, 0, 4, 9, 2], 1), most=8, activation="silu", save="all")
    blocks = plan.blocks(plan.shares[0])
    assert [(block.experts, block.sizes, block.first) for block in blocks] == [
        ([0, 2], [3, 4], True),
        ([3], [8], True),
        ([3], [1], False),
        ([4], [2], True),
    ]


def test_blocks_of_narrow_experts_have_more_rows() -> None:
    assert most_rows(torch.empty(1, 512), torch.empty(1, 2048, 512)) == 1024
    assert most_rows(torch.empty(1, 128), torch.empty(1, 128, 128)) == 4096


# ---- buffers ------------------------------------------------------------------------------------------------------


def test_buffers_do_not_overlap_and_are_reused() -> None:
    first = workspace.buffers(3, (5, 7), torch.float64)
    for value, buffer in enumerate(first):
        buffer.fill_(value)
    assert [buffer.shape for buffer in first] == [(3, 5), (3, 7)]
    assert [buffer.unique().tolist() for buffer in first] == [[0], [1]]
    assert workspace.buffers(2, (4,), torch.float64)[0].data_ptr() == first[0].data_ptr()


def test_each_thread_has_its_own_buffers() -> None:
    mine, theirs = workspace.buffers(2, (4,), torch.float64)[0], []
    thread = threading.Thread(target=lambda: theirs.append(workspace.buffers(2, (4,), torch.float64)[0]))
    thread.start()
    thread.join()
    assert theirs[0].data_ptr() != mine.data_ptr()


def test_buffers_made_in_inference_mode_serve_training_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace._kept, "flat", {})
    with torch.inference_mode():
        first = workspace.buffers(2, (4,), torch.float64)[0].fill_(1)
    again = workspace.buffers(2, (4,), torch.float64)[0]
    assert again.data_ptr() == first.data_ptr() and again.fill_(2).sum() == 16


def test_buffers_above_the_bound_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.buffers(2, (4,), torch.float64)
    monkeypatch.setattr(workspace, "MOST_KEPT", 100)
    monkeypatch.setattr(workspace._kept, "flat", {})
    large = workspace.buffers(1, (101,), torch.float64)[0]
    assert workspace.buffers(1, (101,), torch.float64)[0].data_ptr() != large.data_ptr()
    assert not workspace._kept.flat


T, D, H, E, K = 24, 8, 6, 4, 2
DIMS = LayerDims(dim=D, num_experts=E)


def layer(seed: int, hidden: int = H) -> tuple[Tensor, TokenChoice, GluExperts]:
    torch.manual_seed(seed)
    routing = best_of_random(T, E, K, torch.float64)
    experts = GluExperts(Glu(count=E, hidden=hidden), DIMS).double()
    return torch.randn(T, D, dtype=torch.float64, requires_grad=True), routing, experts


def run(x_TD: Tensor, routing: TokenChoice, experts: GluExperts) -> Tensor:
    y_TO: Tensor = FusedDispatcher(Fused(), DIMS)(x_TD, routing, experts).y_TO
    return y_TO


def gradients(y_TO: Tensor, x_TD: Tensor, experts: GluExperts) -> list[Tensor]:
    return [y_TO.detach(), *torch.autograd.grad(y_TO.square().sum(), [x_TD, *experts.parameters()])]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_another_models_pass_between_forward_and_backward_changes_nothing() -> None:
    one, other = layer(0), layer(1, hidden=9)
    expected = gradients(run(*one), one[0], one[2])
    y_TO = run(*one)
    with torch.inference_mode():
        run(*other)
    gradients(run(*other), other[0], other[2])
    assert_same(gradients(y_TO, one[0], one[2]), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputing_consecutive_layers_changes_nothing(reentrant: bool) -> None:
    x_TD, routing, experts = layer(0)
    expected = gradients(run(run(x_TD, routing, experts), routing, experts), x_TD, experts)
    y_TO = x_TD
    for _ in range(2):
        y_TO = checkpoint(run, y_TO, routing, experts, use_reentrant=reentrant)
    for parameter in (x_TD, *experts.parameters()):
        parameter.grad = None
    y_TO.square().sum().backward()
    found = [y_TO.detach(), *(leaf.grad for leaf in (x_TD, *experts.parameters()) if leaf.grad is not None)]
    assert_same(found, expected)


@pytest.mark.parametrize("worth", [0, 1 << 60], ids=["parallel", "alone"])
def test_concurrent_callers_get_the_results_of_each_alone(worth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also, two runs give the same bits."""
    monkeypatch.setattr(thread_pool, "PARALLEL_FROM", worth)
    layers = [layer(seed, hidden=5 + seed) for seed in range(4)]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = [gradients(run(*each), each[0], each[2]) for each in layers]

        def often(index: int) -> None:
            for _ in range(20):
                assert_same(gradients(run(*layers[index]), layers[index][0], layers[index][2]), expected[index])

        with ThreadPoolExecutor(4) as callers:
            list(callers.map(often, range(4)))
    finally:
        torch.set_num_threads(before)
