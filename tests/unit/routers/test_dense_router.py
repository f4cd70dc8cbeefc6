from __future__ import annotations

import pytest
import torch

from moekit.contracts import Init, LayerDims
from moekit.errors import MoekitError
from moekit.spec.kinds import DispatcherSpec, ExpertSpec, MoE
from moekit_routers.dense import Dense
from moekit_routers.dense.module import DenseRouter

DIMS = LayerDims(dim=6, num_experts=4)


def test_every_expert_works_for_every_token() -> None:
    routing = DenseRouter(Dense(), DIMS)(torch.randn(5, 6))
    assert routing.combine_TEP.shape == (5, 4, 1)
    assert routing.dispatch_TEP is None
    torch.testing.assert_close(routing.combine_TEP.sum(1), torch.ones(5, 1))
    assert routing.load_E().tolist() == [5, 5, 5, 5]
    assert Dense().active(4) == 4


def test_padding_has_gate_zero_and_no_gradient() -> None:
    router, valid_T = DenseRouter(Dense(), DIMS), torch.tensor([True, False, True])
    x_TD = torch.randn(3, 6, requires_grad=True)
    routing = router(x_TD, valid_T=valid_T)
    assert not routing.combine_TEP[1].any()
    assert routing.load_E().tolist() == [2, 2, 2, 2]
    routing.combine_TEP.square().sum().backward()
    assert x_TD.grad is not None
    assert x_TD.grad.ne(0).any(1).tolist() == [True, False, True]


def test_the_bias_is_an_option() -> None:
    assert [name for name, _ in DenseRouter(Dense(), DIMS).named_parameters()] == ["weight_ED", "bias_E"]
    assert [name for name, _ in DenseRouter(Dense(bias=False), DIMS).named_parameters()] == ["weight_ED"]


def test_weights_are_drawn_as_the_model_asks() -> None:
    router = DenseRouter(Dense(), LayerDims(dim=200, num_experts=50))
    router.init_weights(Init(std=0.006))
    assert router.weight_ED.std().item() == pytest.approx(0.006, rel=0.05)
    assert router.bias_E is not None
    assert not router.bias_E.any()


def test_it_takes_no_selection_bias() -> None:
    with pytest.raises(MoekitError, match="the dense router chooses no experts, so a selection bias has no effect"):
        DenseRouter(Dense(), DIMS)(torch.randn(2, 6), selection_bias_E=torch.zeros(4))
    with pytest.raises(ValueError, match="Dense routes by 'soft', but dispatcher DispatcherSpec takes"):
        MoE(router=Dense(), experts=ExpertSpec(count=4), dispatcher=DispatcherSpec())


def test_it_stays_fp32_in_a_bf16_model_under_autocast_and_compiles() -> None:
    router = DenseRouter(Dense(), DIMS).bfloat16()
    x_TD = torch.randn(5, 6, dtype=torch.bfloat16)
    alone = router(x_TD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = router(x_TD)
    assert routing.combine_TEP.dtype == torch.float32
    assert torch.equal(routing.combine_TEP, alone.combine_TEP)
    compiled = torch.compile(router, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x_TD).combine_TEP, alone.combine_TEP)
