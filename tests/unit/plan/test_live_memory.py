"""What is alive, and what is saved for backward: exact sums, where they are known. Peaks: ``test_activations``."""

from __future__ import annotations

import torch
from torch import Tensor

from moekit.bench.layers import dense_variant
from moekit.bench.request import Shape
from moekit.bench.workload import make_workload
from moekit.planning.live_memory import LiveBytes, saved_for_backward


def leaf(*shape: int) -> Tensor:
    return torch.ones(shape, requires_grad=True)


def test_living_storages_count_but_not_copies_of_banks_in_another_dtype() -> None:
    """Nor what the caller skips. The peak remembers what was freed."""
    x, bank = torch.ones(3, 4), torch.ones(2, 5)
    with LiveBytes([x, bank], [bank]) as live:
        copy, narrow, view = bank.bfloat16(), x.bfloat16(), x[1:]
        assert live.now == narrow.nbytes == 24 and list(live.copies.values()) == [copy.nbytes]
        live.skips = lambda tensor: tensor.ndim == 1
        skipped, double = torch.ones(100), x.double()
        assert live.now == 24 + 96
        del copy, double
        assert (live.now, live.peak, live.copies) == (24, 120, {})
    assert view.numel() == 8 and skipped.numel() == 100


def test_a_product_saves_both_factors() -> None:
    x, w = leaf(3, 4), leaf(5, 4)
    found = saved_for_backward(lambda: x @ w.T)
    assert found.bytes == 4 * (3 * 4 + 5 * 4)
    assert sorted(size for *_, size in found.tensors) == [48, 80]
    assert {dtype for _, dtype, _ in found.tensors} == {"float32"}


def test_storages_of_weights_do_not_count() -> None:
    x, w = leaf(3, 4), leaf(5, 4)
    assert saved_for_backward(lambda: x @ w.T, [w]).bytes == 48


def test_a_storage_counts_once_and_whole_whatever_views_of_it_are_saved() -> None:
    x = leaf(6, 4)

    def forward() -> Tensor:
        part, rest = x[:2], x[2:4]
        return (part * rest).exp() * part.square()

    whole, exp, square = 6 * 4, 2 * 4, 2 * 4  # all of x, for two views of it; exp's output, saved twice; the square
    found = saved_for_backward(forward)
    assert found.bytes == 4 * (whole + exp + square)
    assert len(found.tensors) == 3


def test_nothing_is_saved_by_a_sum_or_without_gradients() -> None:
    x = leaf(6, 4)
    assert saved_for_backward(lambda: x.sum()).bytes == 0
    with torch.no_grad():
        assert saved_for_backward(lambda: x.exp()).bytes == 0


def test_the_dense_layer_saves_tokens_and_four_hidden_arrays() -> None:
    """x; gate and up as one array of 2·K·H a token; silu(gate); their product."""
    T, D, H, _, K = shape = Shape(8, 4, 6, 4, 2)
    work = make_workload(shape, "cpu", torch.float32)
    dense = dense_variant(work)
    found = saved_for_backward(dense.forward, dense.weights)
    assert found.bytes == 4 * (T * D + T * 2 * K * H + T * K * H + T * K * H)
