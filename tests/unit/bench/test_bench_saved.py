"""What is saved for backward: exact sums, where they are known."""

from __future__ import annotations

import torch
from torch import Tensor

from moekit_bench.saved import saved_for_backward


def leaf(*shape: int) -> Tensor:
    return torch.ones(shape, requires_grad=True)


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
