"""Attention by blocks: the values and gradients of torch's, and where it is used."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from moekit_models.attending import BLOCK, InBlocks, attention, by_blocks

CASES = {
    "shared keys": (4, 2, 8, 8),
    "own keys, narrow values": (3, 3, 12, 8),
    "one key head, wide values": (4, 1, 4, 6),
}


def inputs(case: str, S: int = 3 * BLOCK) -> tuple[Tensor, Tensor, Tensor]:
    heads, key_heads, D, V = CASES[case]
    shapes = ((2, S, heads, D), (2, S, key_heads, D), (2, S, key_heads, V))
    q, k, v = (torch.randn(shape) for shape in shapes)
    return q, k, v


def oracle(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """By torch's definition, in fp64."""
    group = q.shape[2] // k.shape[2]
    k, v = (t.repeat_interleave(group, 2) for t in (k, v))
    q, k, v = (t.double().transpose(1, 2) for t in (q, k, v))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(1, 2)


@pytest.mark.parametrize("case", CASES)
def test_blocks_give_the_values_and_gradients_of_the_definition_in_fp64(case: str) -> None:
    given = [t.requires_grad_() for t in inputs(case)]
    assert by_blocks(*given, {"is_causal": True})
    y = attention(*given, {"is_causal": True}, 0.3)
    expected = oracle(*given, 0.3)
    g = torch.randn_like(y)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    for got, right in zip(
        torch.autograd.grad(y, given, g), torch.autograd.grad(expected, given, g.double()), strict=True
    ):
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5)


def test_blocks_are_differentiable_twice() -> None:
    q, k, v = (t.requires_grad_() for t in inputs("shared keys", 2 * BLOCK))

    def second(y: Tensor) -> Tensor:
        (dq,) = torch.autograd.grad(y.square().sum(), q, create_graph=True)
        return torch.autograd.grad(dq.square().sum(), k)[0]

    right = second(oracle(q, k, v, 0.3))
    torch.testing.assert_close(second(InBlocks.apply(q, k, v, 0.3)), right.float(), rtol=1e-3, atol=1e-4)  # type: ignore[no-untyped-call]


def test_blocks_are_for_causal_fp32_training_of_short_sequences_alone() -> None:
    q, k, v = inputs("shared keys")
    assert by_blocks(q, k, v, {"is_causal": True})
    assert not by_blocks(q, k, v, {})
    assert not by_blocks(q, k, v, {"attn_mask": torch.ones(1, dtype=torch.bool)})
    assert not by_blocks(q.double(), k.double(), v.double(), {"is_causal": True})
    assert not by_blocks(*inputs("shared keys", BLOCK + 1), {"is_causal": True})
    assert not by_blocks(*inputs("shared keys", 512), {"is_causal": True})
    with torch.no_grad():
        assert not by_blocks(q, k, v, {"is_causal": True})
    with torch.autocast("cpu", torch.bfloat16):
        assert not by_blocks(q, k, v, {"is_causal": True})
    with FlopCounterMode(display=False):
        assert not by_blocks(q, k, v, {"is_causal": True})


def test_values_narrower_or_wider_than_keys_keep_the_scale_of_the_keys() -> None:
    for case in CASES:
        q, k, v = inputs(case, 5)
        got = attention(q, k, v, {"is_causal": True}, None)
        torch.testing.assert_close(got.double(), oracle(q, k, v, q.shape[-1] ** -0.5), rtol=1e-5, atol=1e-5)
