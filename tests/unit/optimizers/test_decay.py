"""Weight decay applies to matrices, but not to scales and biases that are stacked over experts."""

from __future__ import annotations

from moekit.contracts import LayerDims
from moekit.registry import build
from moekit_experts.glu import Glu
from moekit_optimizers.decay import groups


def test_scales_of_experts_do_not_decay() -> None:
    """ST-MoE's factors start at 1: decay would pull them, and the expert with them, to 0. They are ``[E, H]``."""
    experts = build(Glu(count=2, hidden=3, scale_bias=True), LayerDims(dim=4, num_experts=2))
    decaying, other = groups(experts, 0.1, "AdamW")
    assert [tuple(p.shape) for p in other["params"]] == [(2, 3)] and other["weight_decay"] == 0.0
    assert len(decaying["params"]) == 2
