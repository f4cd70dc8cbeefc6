"""Rotary positions: precision, tables that are kept, and the backward pass."""

from __future__ import annotations

import torch

from moekit_models import rotary
from moekit_models.rotary import Rotated, rotate, turns
from moekit_models.stretch import Stretch
from moekit_models.yarn import Yarn


def test_bf16_vectors_are_rotated_in_fp32() -> None:
    x = torch.randn(2000, 8).bfloat16()
    by = turns(x, 8, 1e4)
    assert by.cos.dtype == torch.float32
    torch.testing.assert_close(rotate(x, by), rotate(x.float(), by).bfloat16(), rtol=0, atol=0)


def test_a_rotation_has_derivatives_to_the_second_order() -> None:
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    by = turns(x[:, :, 0], 4, 100.0, heads=2)
    assert torch.autograd.gradcheck(lambda v: Rotated.apply(v, *by), [x])
    assert torch.autograd.gradgradcheck(lambda v: Rotated.apply(v, *by) * v, [x])
    torch.testing.assert_close(rotate(x, by).norm(), x.norm())
    narrow = x.detach().float().requires_grad_()
    assert "Rotated" in type(rotate(narrow, turns(narrow[:, :, 0], 4, 100.0, heads=2)).grad_fn).__name__


def test_tables_of_turns_are_kept_for_any_start_and_for_training_after_generation() -> None:
    rotary._kept_turns.cache_clear()
    x = torch.randn(40, 8)
    with torch.inference_mode():
        whole = turns(x, 8, 1e4)
        later = turns(x[:5], 8, 1e4, start=35)
    assert rotary._kept_turns.cache_info().currsize == 1
    assert torch.equal(later.sin, whole.sin[35:]) and not whole.cos.is_inference()
    v = x.clone().requires_grad_()
    rotate(v, turns(x, 8, 1e4)).sum().backward()
    assert v.grad is not None


def test_turns_that_depend_on_the_length_of_the_text_are_not_kept() -> None:
    rotary._kept_turns.cache_clear()
    x, dynamic = torch.randn(40, 8), Stretch(rule="dynamic", factor=2.0, original=16)
    assert not torch.equal(turns(x[:20], 8, 1e4, dynamic).cos, turns(x, 8, 1e4, dynamic).cos[:20])
    assert rotary._kept_turns.cache_info().currsize == 0
    turns(x, 8, 1e4, Yarn(factor=4.0, original=16))
    turns(x, 8, 1e4, Stretch(rule="linear", factor=4.0))
    assert rotary._kept_turns.cache_info().currsize == 2
