"""Tokens, routing and experts that all variants share."""

from __future__ import annotations

import pytest
import torch

from moekit.contracts.layer import UniformGroups
from moekit_bench.request import SHAPES, Shape
from moekit_bench.workload import IdentityExperts, counted_multiply_adds, make_workload, plain_dispatch

SHAPE = Shape(16, 8, 16, 8, 4)


@pytest.mark.parametrize("name", SHAPES)
def test_sparse_and_dense_layers_have_equal_multiply_adds(name: str) -> None:
    T, D, H, _, K = SHAPES[name]
    assert counted_multiply_adds(SHAPES[name]) == (3 * T * K * D * H,) * 2


def test_the_routing_is_the_same_each_time_and_its_gates_are_a_leaf() -> None:
    one, other = (make_workload(SHAPE, "cpu", torch.float32) for _ in range(2))
    torch.testing.assert_close(one.x_TD, other.x_TD, rtol=0, atol=0)
    assert torch.equal(one.routing.expert_TK, other.routing.expert_TK)
    assert one.gate_TK.is_leaf and one.gate_TK.requires_grad


def test_experts_are_built_in_the_dtype_of_the_tokens() -> None:
    work = make_workload(SHAPE, "cpu", torch.bfloat16)
    assert {p.dtype for p in work.experts().parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


def test_identity_experts_are_the_weighted_sum_of_the_tokens_themselves() -> None:
    work = make_workload(SHAPE, "cpu", torch.float32)
    y_TO = plain_dispatch(work.x_TD, work.routing.expert_TK, work.gate_TK, SHAPE.E)
    torch.testing.assert_close(y_TO, work.x_TD * work.gate_TK.sum(1, keepdim=True))
    assert torch.equal(IdentityExperts(work.dims)(work.x_TD, UniformGroups(1, 16)), work.x_TD)


def test_the_least_that_a_layer_must_save_is_tokens_and_first_products() -> None:
    work = make_workload(Shape(8, 4, 6, 4, 2), "cpu", torch.bfloat16)
    assert work.input_bytes == 2 * 8 * 4
    assert work.least_bytes() == 2 * (8 * 4 + 8 * 2 * 2 * 6)
