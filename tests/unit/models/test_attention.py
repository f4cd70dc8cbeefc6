"""Attention: autocast and bf16, and options that a spec refuses."""

from __future__ import annotations

import pytest
import torch

from moekit.registry import build
from moekit.spec.kinds import AttentionSpec
from moekit_models.gqa import GQA
from moekit_models.mla import MLA

SPECS: dict[str, AttentionSpec] = {
    "mha": GQA(heads=4, head_dim=8),
    "gqa": GQA(heads=4, kv_heads=2, head_dim=8, qk_norm=True),
    "mla": MLA(heads=4, query_rank=12, kv_rank=10, nope_dim=8, rope_dim=4, value_dim=8),
    "mla, no query compression": MLA(heads=4, kv_rank=10, nope_dim=8, rope_dim=4, value_dim=8),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_autocast_and_bf16_stay_near_fp32(spec: AttentionSpec) -> None:
    attention, x = build(spec, 16), torch.randn(2, 9, 16)
    exact = attention(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attention(x)
    mixed.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in attention.parameters())
    half = attention.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    for y in (mixed, half):
        torch.testing.assert_close(y.float(), exact, rtol=0.1, atol=0.02)


def test_heads_must_form_groups_and_rotary_widths_must_be_even() -> None:
    with pytest.raises(ValueError, match="heads=4 is not a multiple of kv_heads=3"):
        GQA(heads=4, kv_heads=3, head_dim=8)
    with pytest.raises(ValueError, match="head_dim=7 must be even"):
        GQA(heads=4, head_dim=7)
    with pytest.raises(ValueError, match="rope_dim=3 must be even"):
        MLA(heads=4, kv_rank=8, nope_dim=8, rope_dim=3, value_dim=8)
