"""Weights are initialised by name: a seed gives one model, whatever else is built and in any layout."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from moekit.contracts import Dispatched, Dispatcher, ExpertBank, Init, LayerDims, Table
from moekit.moe_layer import MoELayer
from moekit.routing import Routing
from moekit.weights import init_weights
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts
from moekit_models.norms import RMSNorm
from moekit_routers.topk import TopK
from moekit_routers.topk.module import TopKRouter


class Constant(ExpertBank):
    """An experts module that is not stacked and initialises its weights in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.out_dim = 1, 2
        self.inner = nn.Linear(2, 2)

    def init_weights(self, init: Init) -> None:
        nn.init.constant_(self.inner.weight, 7.0)

    def forward(self, x_ND, groups):  # type: ignore[no-untyped-def]
        return self.inner(x_ND)


class Model(nn.Module):
    """A parameter of its own, and children."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(200, 200))
        self.linear = nn.Linear(200, 200)
        self.norm = RMSNorm(200)
        self.bank = GluExperts(Glu(count=2, hidden=100), LayerDims(dim=200, num_experts=2))
        self.constant = Constant()


def test_weights_get_the_distribution_and_norms_and_biases_do_not() -> None:
    model = Model()
    init_weights(model, Init(std=0.01), seed=0)
    for weight in (model.table, model.linear.weight, model.bank.w_gate_up_EHD, model.bank.w_down_EOH):
        assert weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not model.linear.bias.any()
    assert (model.norm.weight == 1).all()
    assert (model.constant.inner.weight == 7).all()


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        (Init(std=0.02), (0.02, 0.02, 1.0)),  # inputs matter under a scale alone
        (Init(scale=0.5), (0.88 * math.sqrt(0.5), 0.88 * math.sqrt(0.5 / 50), 1.0)),  # .88: truncated at two
    ],
)
def test_a_table_has_the_models_distribution_for_its_inputs_or_its_own_deviation(
    init: Init, expected: tuple[float, float, float]
) -> None:
    tables = nn.ModuleList([Table(100, 100), Table(100, 100, inputs=50), Table(100, 100, std=1.0)])
    init_weights(tables, init, seed=0)
    found = tuple(float(table.weight.detach().std()) for table in tables if isinstance(table, Table))
    assert found == pytest.approx(expected, rel=0.03)


class SomeExperts(Dispatcher):
    """Holds some of the experts; dispatches nothing."""

    def __init__(self, held: range | None) -> None:
        super().__init__()
        self.local_experts = held

    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        raise NotImplementedError


def layer(held: range | None = None, count: int = 4) -> MoELayer:
    num_held = count if held is None else len(held)
    return MoELayer(
        router=TopKRouter(TopK(top_k=1), LayerDims(dim=6, num_experts=count)),
        experts=GluExperts(Glu(count=num_held, hidden=5), LayerDims(dim=6, num_experts=num_held)),
        dispatcher=SomeExperts(held),
    )


def initialised(*layers: MoELayer, seed: int = 1, init: Init | None = None) -> nn.ModuleList:
    model = nn.ModuleList(layers)
    init_weights(model, init or Init(std=0.5), seed)
    return model


@pytest.mark.parametrize("init", [Init(std=0.3), Init(scale=0.5)], ids=str)
def test_an_expert_has_the_same_weights_whichever_others_its_rank_holds(init: Init) -> None:
    (whole,) = initialised(layer(), init=init)
    for held in (range(2), range(2, 4), range(1, 2)):
        (some,) = initialised(layer(held), init=init)
        assert torch.equal(some.router.weight_ED, whole.router.weight_ED)
        for part, all_of_it in zip(some.experts.parameters(), whole.experts.parameters(), strict=True):
            assert torch.equal(part, all_of_it[held.start : held.stop])
            assert part.requires_grad and part.grad is None


def test_other_modules_and_earlier_draws_change_no_weight() -> None:
    (alone,) = initialised(layer())
    torch.rand(7)
    first, second = initialised(layer(), layer())
    assert torch.equal(alone.experts.w_down_EOH, first.experts.w_down_EOH)
    assert not torch.equal(first.experts.w_down_EOH, second.experts.w_down_EOH)
    assert not torch.equal(first.router.weight_ED, second.router.weight_ED)
    assert not torch.equal(first.experts.w_down_EOH[0], first.experts.w_down_EOH[1])
    (other,) = initialised(layer(), seed=2)
    assert not torch.equal(alone.experts.w_down_EOH, other.experts.w_down_EOH)


def test_initialisation_leaves_torchs_generator_as_it_was() -> None:
    model = layer()
    before = torch.get_rng_state()
    initialised(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_meta_parameters_are_skipped() -> None:
    with torch.device("meta"):
        model = layer(count=4096)
    initialised(model)
    assert all(parameter.is_meta for parameter in model.parameters())
