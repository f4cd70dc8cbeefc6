"""What is saved for backward: the exact sum, on functions whose sum is known."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from moekit.bench.layer import dense_variant, plain_variant
from moekit.bench.measure import Settings, measure
from moekit.bench.memory import saved_for_backward
from moekit.bench.shapes import Shape
from moekit.bench.work import build_in, make_work, sparse_spec


def leaf(*shape: int) -> Tensor:
    return torch.ones(shape, requires_grad=True)


def test_a_product_saves_both_factors() -> None:
    x, w = leaf(3, 4), leaf(5, 4)
    found = saved_for_backward(lambda: x @ w.T)
    assert found.bytes == 4 * (3 * 4 + 5 * 4)
    assert sorted(size for *_, size in found.tensors) == [48, 80]
    assert {dtype for _, dtype, _ in found.tensors} == {"float32"}


def test_weights_do_not_count() -> None:
    x, w = leaf(3, 4), leaf(5, 4)
    assert saved_for_backward(lambda: x @ w.T, [w]).bytes == 48


def test_a_storage_counts_once_and_whole_whatever_views_of_it_are_saved() -> None:
    x = leaf(6, 4)

    def forward() -> Tensor:
        part, rest = x[:2], x[2:4]
        return (part * rest).exp() * part.square()

    whole, exp, square = (
        6 * 4,
        2 * 4,
        2 * 4,
    )  # two views of x, and of it all of x; exp's output, saved twice; the square
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
    T, D, H, E, K = shape = Shape(8, 4, 6, 4, 2)
    work = make_work(shape, "cpu", torch.float32)
    dense = dense_variant(work, Settings())
    found = saved_for_backward(dense.forward, dense.weights)
    assert found.bytes == 4 * (T * D + T * 2 * K * H + T * K * H + T * K * H)
    assert E == 4


def test_it_is_told_of_every_row_where_it_is_asked_for() -> None:
    work = make_work(Shape(8, 4, 8, 4, 2), "cpu", torch.float32)
    experts = build_in(sparse_spec(work.shape), work.dims, "cpu", torch.float32)
    settings = Settings(rounds=1, warmup=1, memory=True)
    rows, _ = measure(
        [dense_variant(work, settings), plain_variant(work, experts)], settings, baseline="dense", pairs=16
    )
    assert all(row.saved is not None and row.saved.bytes > work.input_bytes for row in rows)
    assert all(row.peak is None for row in rows)
    rows, _ = measure([dense_variant(work, settings)], replace(settings, memory=False), baseline="dense", pairs=16)
    assert rows[0].saved is None


def test_the_least_that_a_layer_must_keep() -> None:
    work = make_work(Shape(8, 4, 6, 4, 2), "cpu", torch.bfloat16)
    assert work.input_bytes == 2 * 8 * 4
    assert work.least_bytes() == 2 * (8 * 4 + 8 * 2 * 2 * 6)
