"""Mistakes in the lineage's parts that no other test noticed: each was made in moekit, and the suite stayed green.

Traps that other tests catch have no second test here.
"""

from __future__ import annotations

import torch

from moekit.contracts import LayerDims
from moekit_routers.strict import Strict
from moekit_routers.strict.module import StrictRouter
from moekit_routers.topk import TopK
from moekit_routers.topk.module import TopKRouter

EPS = 1e-2


def jitter_of(x_TD: torch.Tensor) -> torch.Tensor:
    """The factors by which a router in training multiplied its input of ones: with W = I they are its logits."""
    D = x_TD.shape[1]
    router = TopKRouter(TopK(top_k=1, input_jitter=EPS), LayerDims(dim=D, num_experts=D)).train()
    with torch.no_grad():
        router.weight_ED.copy_(torch.eye(D))
    return router(x_TD).logits_TE.detach()


def test_jitter_is_drawn_for_every_element() -> None:
    """Switch, section 2.4, as its code has it: U(1 - eps, 1 + eps) for each number, not one for each token."""
    torch.manual_seed(0)
    factor_TD = jitter_of(torch.ones(50, 64))
    assert factor_TD.min() >= 1 - EPS and factor_TD.max() <= 1 + EPS
    for spread in (factor_TD.std(0), factor_TD.std(1)):  # a uniform draw's is eps / sqrt(3)
        torch.testing.assert_close(spread, torch.full_like(spread, EPS / 3**0.5), rtol=0.3, atol=0)
    assert abs(factor_TD.mean() - 1) < EPS / 50


def test_jitter_on_bf16_tokens_is_not_rounded_to_bf16() -> None:
    """bf16 knows five numbers within 1% of 1: the router's input is widened before it is multiplied."""
    torch.manual_seed(0)
    factor_TD = jitter_of(torch.ones(4, 64, dtype=torch.bfloat16))
    assert factor_TD.dtype == torch.float32
    assert factor_TD.unique().numel() > 200


def test_a_threshold_that_is_just_met_is_not_passed() -> None:
    """Shazeer et al., appendix F: x > T. At the start, with equal logits, no token passes anywhere."""
    router = StrictRouter(Strict(top_k=2), LayerDims(dim=3, num_experts=4)).eval()
    with torch.no_grad():
        router.weight_ED.zero_()
    routing = router(torch.randn(5, 3))
    assert routing.sent_TK is not None and not routing.sent_TK.any()
    assert not routing.gate_TK.any()
    with torch.no_grad():
        router.threshold_E[1] -= 1e-6
    assert router(torch.randn(5, 3)).load_E().tolist() == [0, 5, 0, 0]
