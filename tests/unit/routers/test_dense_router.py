from __future__ import annotations

import torch

from moekit.contracts import LayerDims
from moekit_routers.dense import Dense
from moekit_routers.dense.module import DenseRouter

DIMS = LayerDims(dim=6, num_experts=4)


def test_every_expert_works_for_every_token() -> None:
    routing = DenseRouter(Dense(), DIMS)(torch.randn(5, 6))
    assert routing.combine_TEP.shape == (5, 4, 1)
    assert routing.dispatch_TEP is None
    torch.testing.assert_close(routing.combine_TEP.sum(1), torch.ones(5, 1))
    assert routing.load_E().tolist() == [5, 5, 5, 5]


def test_the_logit_bias_is_an_option() -> None:
    assert [name for name, _ in DenseRouter(Dense(), DIMS).named_parameters()] == ["weight_ED", "bias_E"]
    assert [name for name, _ in DenseRouter(Dense(bias=False), DIMS).named_parameters()] == ["weight_ED"]
