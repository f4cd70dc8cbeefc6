"""A model that is sharded before it is initialised has the weights of one that is initialised and then sharded."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from fake_ranks import WORLD, as_rank
from test_fsdp import LAYOUTS, RECIPE
from torch import Tensor, nn

from moekit import load
from moekit.contracts import ExpertBank, Init, LayerDims, Model
from moekit.errors import MoekitError
from moekit.shards import expert_parallel_layers, local, state_dict_shards
from moekit.spec.recipe import Recipe
from moekit.training.build import build_model, build_seeded
from moekit.weights import OwnedParameter, init_weights
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts
from moekit_lightning.sharded import Sharded
from moekit_lightning.sharded.deferred_init import DeferredInit, ShardWriter, defer_init
from moekit_lightning.sharded.fsdp import shard
from moekit_lightning.sharded.module import ShardedStrategy, with_expert_parallel
from moekit_routers.topk import TopK
from moekit_routers.topk.module import TopKRouter

INITIALISES_ITSELF = "jacobs1991"


def build_deferred(recipe: Recipe, ep: int) -> tuple[Model, DeferredInit]:
    with defer_init() as deferred:
        model: Model = build_seeded(with_expert_parallel(recipe, Sharded(ep=ep)).model, recipe.seed)
    return model, deferred


def assert_same(recipe: Recipe, ep: int, dtype: torch.dtype = torch.float32) -> None:
    """Initialised before and after it is sharded, a model has the same weights, to the last bit."""
    whole = build_seeded(with_expert_parallel(recipe, Sharded(ep=ep)).model, recipe.seed).to(dtype)
    model, deferred = build_deferred(recipe, ep)
    assert deferred.covers(model)
    assert all(p.is_meta == (p.ndim >= 2) for p in model.parameters())
    model.to(dtype)
    for each in (whole, model):
        shard(each, ep, "cpu")
    deferred.materialize(model, "cpu")
    expected, found = state_dict_shards(whole), state_dict_shards(model)
    assert list(expected) == list(found)
    for name, each in expected.items():
        assert (each.global_shape, each.offset) == (found[name].global_shape, found[name].offset)
        assert torch.equal(each.tensor, found[name].tensor), name


@LAYOUTS
@pytest.mark.parametrize("rank", range(WORLD))
def test_weights_are_the_same_initialised_before_and_after_sharding(ep: int, rank: int) -> None:
    with as_rank(rank):
        assert_same(RECIPE, ep)


@pytest.mark.parametrize("name", ["deepseek_v3", "glam", "st_moe", "shazeer2017-h"])
def test_every_kind_of_model_can_be_initialised_after_sharding(name: str) -> None:
    with as_rank(1):
        assert_same(load(name), 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_are_initialised_in_fp32_and_then_converted(dtype: torch.dtype) -> None:
    with as_rank(2):
        assert_same(RECIPE, 2, dtype)


def test_weights_are_initialised_in_fp32_under_another_default_dtype() -> None:
    """Lightning configures a model under a default of fp64 where the precision is 64-true."""
    recipe = load("switch")
    torch.set_default_dtype(torch.float64)
    try:
        model, deferred = ShardedStrategy(Sharded(ep=1)).build_unsharded(recipe)
        deferred.materialize(model, "cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    for p, q in zip(model.parameters(), build_model(recipe).parameters(), strict=True):
        assert torch.equal(p, q)


def test_tied_parameters_stay_tied_and_frozen_ones_frozen() -> None:
    recipe = load("glam", ["model.tied=true"])
    with as_rank(1):
        model, deferred = build_deferred(recipe, 1)
        first, last = model.embeddings()
        assert first is last is not None
        model.requires_grad_(False)
        shard(model, 1, "cpu")
        deferred.materialize(model, "cpu")
        first, last = model.embeddings()
        assert first is last is not None and local(first).std() > 0
        assert not any(p.requires_grad for p in model.parameters())


def test_one_expert_at_a_time_is_initialised_and_only_by_ranks_that_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of stacked weights that are sharded over replicas, a rank initialises none of the others' experts."""
    initialised: dict[str, list[int]] = {}
    buffer = ShardWriter.buffer

    def recorded(self: ShardWriter, owned: OwnedParameter, expert: int | None) -> Tensor:
        tensor = buffer(self, owned, expert)
        assert expert is None or len(tensor) == 1
        initialised.setdefault(owned.name, []).append(-1 if expert is None else expert)
        return tensor

    monkeypatch.setattr(ShardWriter, "buffer", recorded)
    with as_rank(3):
        model, deferred = build_deferred(load("deepseek_v3", ["model.moe.experts.count=64"]), 2)
        routed = [layer.experts for layer in expert_parallel_layers(model)]
        names = {name for name, p in model.named_parameters() if any(p is q for r in routed for q in r.parameters())}
        shard(model, 2, "cpu")
        deferred.materialize(model, "cpu")
    assert len(names) > 2
    for name in names:  # the second of two replicas, each of 32 experts
        assert initialised[name] == list(range(16, 32))


class InitialisesItself(nn.Module):
    """In its constructor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        nn.init.constant_(self.linear.weight, 2.0)


def test_a_recipes_model_that_initialises_itself_is_built_unsharded() -> None:
    recipe = load(INITIALISES_ITSELF)
    model, deferred = ShardedStrategy(Sharded(ep=1)).build_unsharded(recipe)
    expected = build_model(recipe)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), expected.parameters(), strict=True))
    deferred.materialize(model, "cpu")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), expected.parameters(), strict=True))


def test_a_model_that_initialises_itself_is_not_covered() -> None:
    with defer_init() as deferred:
        model = InitialisesItself()
    assert not deferred.covers(model)
    with defer_init() as deferred:
        model = InitialisesItself()
        init_weights(model.linear, Init(), 0)
    assert deferred.covers(model)
    assert InitialisesItself().linear.weight.eq(2).all(), "the hook is still there"


def test_modules_that_are_given_as_experts_keep_their_weights() -> None:
    with defer_init() as deferred:
        model = nn.ModuleDict({"bank": ExpertBank.from_modules([nn.Linear(3, 3)], 3)})
        init_weights(model, Init(), 0)
    assert not deferred.covers(model)


class Tied(nn.Module):
    """One matrix under two names, created before either."""

    def __init__(self) -> None:
        super().__init__()
        both = nn.Parameter(torch.ones(4, 4))
        self.one, self.other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.one.weight = self.other.weight = both


def test_a_tied_matrix_is_one_meta_parameter() -> None:
    with defer_init() as deferred:
        model = Tied()
        init_weights(model, Init(), 0)
    assert model.one.weight is model.other.weight and model.one.weight.is_meta
    deferred.materialize(model, "cpu")
    assert model.one.weight is model.other.weight
    expected = Tied()
    init_weights(expected, Init(), 0)
    assert torch.equal(model.one.weight, expected.one.weight)


class Particular(TopKRouter):
    """Initialises one vector and keeps the value of another."""

    def __init__(self) -> None:
        super().__init__(TopK(top_k=1), LayerDims(dim=3, num_experts=2))
        self.random_E, self.kept_E = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.tensor([5.0, 6.0]))

    def init_weights(self, init: Init) -> None:
        nn.init.normal_(self.random_E)
        init.draw(self.weight_ED)


def test_a_router_may_initialise_one_vector_and_keep_another() -> None:
    with defer_init() as deferred:
        router = Particular()
        init_weights(router, Init(), 4)
    deferred.materialize(router, "cpu")
    expected = Particular()
    init_weights(expected, Init(), 4)
    for p, q in zip(router.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)


class Scaled(GluExperts):
    """Keeps one factor for each expert."""

    def __init__(self) -> None:
        super().__init__(Glu(count=2, hidden=4), LayerDims(dim=3, num_experts=2))
        self.scale_E = nn.Parameter(torch.tensor([5.0, 6.0]))


def test_stacked_experts_may_keep_the_values_of_a_vector() -> None:
    with defer_init() as deferred:
        bank = Scaled()
        init_weights(bank, Init(), 4)
    deferred.materialize(bank, "cpu")
    assert bank.scale_E.tolist() == [5.0, 6.0]


class Forgetful(GluExperts):
    """Does not initialise one of its matrices."""

    def init_weights(self, init: Init) -> None:
        init.draw(self.w_down_EOH)


def test_a_matrix_that_is_not_initialised_is_an_error() -> None:
    with defer_init() as deferred:
        model = nn.ModuleDict({"bank": Forgetful(Glu(count=2, hidden=4), LayerDims(dim=3, num_experts=2))})
        init_weights(model, Init(), 0)
    with pytest.raises(MoekitError, match=r"bank\.w_gate_up_EHD: Forgetful\.init_weights does not initialise"):
        deferred.materialize(model, "cpu")


def test_a_lazy_parameter_stays_as_it_is() -> None:
    with defer_init():
        assert nn.parameter.is_lazy(cast(nn.Parameter, nn.LazyLinear(3).weight))
