"""The mixture of 1991 and the net that it was compared with."""

from __future__ import annotations

import pytest
import torch

from moekit.registry import build
from moekit.routing import Soft as SoftRouting
from moekit.spec.kinds import MoE
from moekit.spec.recipe import Recipe
from moekit_dispatchers.grouped import Grouped
from moekit_dispatchers.soft import Soft
from moekit_experts.linear import Logistic
from moekit_models.mixture import Mixture
from moekit_models.mixture.module import MixtureModel
from moekit_models.mlp import MLP
from moekit_models.mlp.module import MLPModel
from moekit_objectives.competitive import Competitive
from moekit_objectives.squared_error import SquaredError
from moekit_routers.dense import Dense
from moekit_routers.topk import TopK


def mixture(count: int = 4, inputs: int = 2, outputs: int = 1, init_range: float = 0.5) -> MixtureModel:
    moe = MoE(router=Dense(), experts=Logistic(count=count), dispatcher=Soft())
    return MixtureModel(Mixture(inputs=inputs, outputs=outputs, moe=moe, init_range=init_range))


def test_the_output_is_the_blend_of_all_experts_outputs() -> None:
    out = mixture(outputs=3)(torch.randn(5, 2))
    (name,), (report,) = out.reports, out.reports.values()
    assert name == "moe" and out.y.shape == (5, 3)
    assert isinstance(report.routing, SoftRouting) and report.expert_TEO is not None
    assert report.expert_TEO.shape == (5, 4, 3)
    blend = (report.routing.combine_TEP[:, :, :1] * report.expert_TEO).sum(1)
    torch.testing.assert_close(out.y, blend)


def test_the_mixture_follows_its_equation() -> None:
    model = mixture(count=3).double()
    x = torch.randn(6, 2, dtype=torch.float64)
    router, experts = model.moe.router, model.moe.experts
    p = (x @ router.weight_ED.T + router.bias_E).softmax(-1)
    named = dict(experts.named_parameters())
    (w,) = (v for v in named.values() if v.ndim == 3)
    (b,) = (v for v in named.values() if v.ndim == 2)
    y = sum(p[:, i : i + 1] * torch.sigmoid(x @ w[i].T + b[i]) for i in range(3))
    torch.testing.assert_close(model(x).y, y)


def test_the_net_follows_its_equation() -> None:
    model = MLPModel(MLP(inputs=2, hidden=6, outputs=1))
    x = torch.randn(5, 2)
    h = torch.sigmoid(x @ model.hidden.weight.T + model.hidden.bias)
    torch.testing.assert_close(model(x).y, torch.sigmoid(h @ model.out.weight.T + model.out.bias))
    assert sum(p.numel() for p in model.parameters()) == 6 * 3 + 7


def test_initial_weights_and_biases_are_uniform_in_their_range() -> None:
    for model in (mixture(100, 20, 10, init_range=0.3), MLPModel(MLP(inputs=20, hidden=100, init_range=0.3))):
        initial = torch.cat([p.detach().flatten() for p in model.parameters()])
        assert initial.abs().max() <= 0.3
        assert initial.std().item() == pytest.approx(0.3 / 3**0.5, rel=0.05)
        assert all(p.any() for p in model.parameters())  # biases too


def test_without_a_soft_gate_the_mixture_offers_only_its_blend() -> None:
    moe = MoE(router=TopK(top_k=2), experts=Logistic(count=4), dispatcher=Grouped())
    model = Mixture(inputs=2, moe=moe)
    assert Recipe(model=model, objective=SquaredError()).model.offers() == "prediction"
    with pytest.raises(ValueError, match="objective Competitive takes mixture, but model Mixture gives 'prediction'"):
        Recipe(model=model, objective=Competitive())
    assert build(model)(torch.randn(5, 2)).y.shape == (5, 1)
