"""Weights are drawn by name: a seed names one model, whatever else is built and however it is laid out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moekit.contracts import Dispatched, Dispatcher, ExpertBank, Init, LayerDims
from moekit.layer import MoELayer
from moekit.routing import Routing
from moekit.weights import init_weights
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts
from moekit_models.blocks import RMSNorm
from moekit_routers.topk import TopK
from moekit_routers.topk.module import TopKRouter


class Stubborn(ExpertBank):
    """A bank that draws its weights in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.out_dim = 1, 2
        self.inner = nn.Linear(2, 2)

    def init_weights(self, init: Init) -> None:
        nn.init.constant_(self.inner.weight, 7.0)

    def forward(self, x_ND, groups):  # type: ignore[no-untyped-def]
        return self.inner(x_ND)


class Holder(nn.Module):
    """A parameter of its own beside children."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(200, 200))
        self.linear = nn.Linear(200, 200)
        self.norm = RMSNorm(200)
        self.bank = GluExperts(Glu(count=2, hidden=100), LayerDims(dim=200, num_experts=2))
        self.stubborn = Stubborn()


def test_weights_are_drawn_and_norms_and_biases_are_not() -> None:
    model = Holder()
    init_weights(model, Init(std=0.01), seed=0)
    for weight in (model.table, model.linear.weight, model.bank.w_gate_up_EHD, model.bank.w_down_EOH):
        assert weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not model.linear.bias.any()
    assert (model.norm.weight == 1).all()
    assert (model.stubborn.inner.weight == 7).all()


class Some(Dispatcher):
    """Holds some of the experts; carries nothing."""

    def __init__(self, here: range | None) -> None:
        super().__init__()
        self.local_experts = here

    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        raise NotImplementedError


def layer(here: range | None = None, count: int = 4) -> MoELayer:
    held = count if here is None else len(here)
    return MoELayer(
        router=TopKRouter(TopK(top_k=1), LayerDims(dim=6, num_experts=count)),
        experts=GluExperts(Glu(count=held, hidden=5), LayerDims(dim=6, num_experts=held)),
        dispatcher=Some(here),
    )


def drawn(*layers: MoELayer, seed: int = 1, init: Init | None = None) -> nn.ModuleList:
    model = nn.ModuleList(layers)
    init_weights(model, init or Init(std=0.5), seed)
    return model


@pytest.mark.parametrize("init", [Init(std=0.3), Init(scale=0.5)], ids=str)
def test_experts_drawn_where_they_live_are_those_drawn_together(init: Init) -> None:
    (whole,) = drawn(layer(), init=init)
    for here in (range(2), range(2, 4), range(1, 2)):
        (some,) = drawn(layer(here), init=init)
        assert torch.equal(some.router.weight_ED, whole.router.weight_ED)
        for part, all_of_it in zip(some.experts.parameters(), whole.experts.parameters(), strict=True):
            assert torch.equal(part, all_of_it[here.start : here.stop])
            assert part.requires_grad and part.grad is None


def test_what_else_is_built_or_drawn_changes_nothing() -> None:
    (alone,) = drawn(layer())
    torch.rand(7)
    first, second = drawn(layer(), layer())
    assert torch.equal(alone.experts.w_down_EOH, first.experts.w_down_EOH)
    assert not torch.equal(first.experts.w_down_EOH, second.experts.w_down_EOH)
    assert not torch.equal(first.router.weight_ED, second.router.weight_ED)
    assert not torch.equal(first.experts.w_down_EOH[0], first.experts.w_down_EOH[1])
    (other,) = drawn(layer(), seed=2)
    assert not torch.equal(alone.experts.w_down_EOH, other.experts.w_down_EOH)


def test_drawing_leaves_torchs_generator_as_it_was() -> None:
    made = layer()
    before = torch.get_rng_state()
    drawn(made)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_is_drawn_on_the_meta_device() -> None:
    with torch.device("meta"):
        made = layer(count=4096)
    drawn(made)
    assert all(parameter.is_meta for parameter in made.parameters())
