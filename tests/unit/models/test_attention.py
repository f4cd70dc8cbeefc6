"""Attention: causality, dtypes, what a spec refuses."""

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
def test_a_later_token_changes_no_earlier_output(spec: AttentionSpec) -> None:
    attention = build(spec, 16).double()
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    changed = x.clone()
    changed[:, 5] = torch.randn(2, 16, dtype=torch.float64)
    before, after = attention(x), attention(changed)
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=0, atol=1e-13)
    assert (after[:, 5:] != before[:, 5:]).any(-1).all()
    torch.testing.assert_close(attention(x[:, :5]), before[:, :5], rtol=0, atol=1e-13)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_autocast_and_bf16_run_and_stay_near_fp32(spec: AttentionSpec) -> None:
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


def test_heads_share_keys_and_values() -> None:
    attention = build(SPECS["gqa"], 16)
    assert attention.k.weight.shape == attention.v.weight.shape == (2 * 8, 16)
    assert attention.q.weight.shape == (4 * 8, 16)


def test_what_specs_refuse() -> None:
    with pytest.raises(ValueError, match="heads=4 is no multiple of kv_heads=3"):
        GQA(heads=4, kv_heads=3, head_dim=8)
    with pytest.raises(ValueError, match="head_dim=7 must be even"):
        GQA(heads=4, head_dim=7)
    with pytest.raises(ValueError, match="rope_dim=3 must be even"):
        MLA(heads=4, kv_rank=8, nope_dim=8, rope_dim=3, value_dim=8)
