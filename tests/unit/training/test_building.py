"""A recipe's model is the same, whatever else the process has drawn or set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from moekit.spec import load
from moekit.training.build import build_model


def test_a_model_is_drawn_in_fp32_under_its_own_seed_and_leaves_no_trace(recipe: Callable[..., dict[str, Any]]) -> None:
    spec = load(recipe())
    usual = build_model(spec).state_dict()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        again = build_model(spec).state_dict()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(tensor.dtype == usual[name].dtype and torch.equal(tensor, usual[name]) for name, tensor in again.items())
