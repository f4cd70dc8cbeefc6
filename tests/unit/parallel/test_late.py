"""Laid out before it is drawn, a model has the weights of one that is drawn whole and then cut."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from fake_ranks import WORLD, as_rank
from test_sharding import LAYOUTS, RECIPE
from torch import Tensor, nn

from moekit import load
from moekit.contracts import ExpertBank, Init, LayerDims, Model
from moekit.errors import MoekitError
from moekit.parallel.deferred_init import DeferredInit, ShardWriter, defer_init
from moekit.parallel.sharding import shard
from moekit.parallel.strategy import ShardedStrategy, with_expert_parallel
from moekit.shards.shard import expert_parallel_layers, local, state_dict_shards
from moekit.spec.recipe import Recipe
from moekit.spec.sharding import Sharded
from moekit.training.build import build_model, build_seeded, build_uncut
from moekit.weights import OwnedParameter, init_weights
from moekit_experts.glu import Glu
from moekit_experts.glu.module import GluExperts
from moekit_routers.topk import TopK
from moekit_routers.topk.module import TopKRouter

DRAWS_ITSELF = "jacobs1991"


def waiting_for(recipe: Recipe, ep: int) -> tuple[Model, DeferredInit]:
    with defer_init() as waiting:
        model: Model = build_seeded(with_expert_parallel(recipe, Sharded(ep=ep)).model, recipe.seed)
    return model, waiting


def assert_same(recipe: Recipe, ep: int, dtype: torch.dtype = torch.float32) -> Model:
    """Both ways to a model in shards end at the same bits; the one that was late."""
    whole = build_seeded(with_expert_parallel(recipe, Sharded(ep=ep)).model, recipe.seed).to(dtype)
    model, waiting = waiting_for(recipe, ep)
    assert waiting.covers(model)
    assert all(p.is_meta == (p.ndim >= 2) for p in model.parameters())
    model.to(dtype)
    for each in (whole, model):
        shard(each, ep, "cpu")
    waiting.materialize(model, "cpu")
    expected, found = state_dict_shards(whole), state_dict_shards(model)
    assert list(expected) == list(found)
    for name, box in expected.items():
        assert (box.global_shape, box.offset) == (found[name].global_shape, found[name].offset)
        assert torch.equal(box.tensor, found[name].tensor), name
    return model


@LAYOUTS
@pytest.mark.parametrize("rank", range(WORLD))
def test_a_rank_has_the_same_weights_drawn_before_and_after_it_is_cut(ep: int, rank: int) -> None:
    with as_rank(rank):
        assert_same(RECIPE, ep)


@pytest.mark.parametrize("name", ["deepseek_v3", "glam", "st_moe", "shazeer2017-h"])
def test_every_kind_of_model_can_be_drawn_late(name: str) -> None:
    with as_rank(1):
        assert_same(load(name), 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_are_drawn_in_fp32_whatever_they_become(dtype: torch.dtype) -> None:
    with as_rank(2):
        assert_same(RECIPE, 2, dtype)


def test_the_dtype_is_that_of_building_and_not_of_whoever_has_it_built() -> None:
    """Lightning configures a model under a default of fp64 where the precision is 64-true."""
    recipe = load("switch")
    torch.set_default_dtype(torch.float64)
    try:
        model, waiting = build_uncut(recipe, ShardedStrategy(Sharded(ep=1)))
        waiting.materialize(model, "cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    for p, q in zip(model.parameters(), build_model(recipe).parameters(), strict=True):
        assert torch.equal(p, q)


def test_what_is_tied_stays_tied_and_what_is_frozen_frozen() -> None:
    recipe = load("glam", ["model.tied=true"])
    with as_rank(1):
        model, waiting = waiting_for(recipe, 1)
        first, last = model.embeddings()
        assert first is last is not None
        model.requires_grad_(False)
        shard(model, 1, "cpu")
        waiting.materialize(model, "cpu")
        first, last = model.embeddings()
        assert first is last is not None and local(first).std() > 0
        assert not any(p.requires_grad for p in model.parameters())


def test_no_more_than_a_module_or_an_expert_is_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And of a bank that is cut over replicas, none of the experts that lie elsewhere."""
    drawn: dict[str, list[int]] = {}
    take = ShardWriter.take

    def noted(self: ShardWriter, owned: OwnedParameter, expert: int | None) -> Tensor:
        taken = take(self, owned, expert)
        assert expert is None or len(taken) == 1
        drawn.setdefault(owned.name, []).append(-1 if expert is None else expert)
        return taken

    monkeypatch.setattr(ShardWriter, "take", noted)
    with as_rank(3):
        model, waiting = waiting_for(load("deepseek_v3", ["model.moe.experts.count=64"]), 2)
        routed = [layer.experts for layer in expert_parallel_layers(model)]
        names = {name for name, p in model.named_parameters() if any(p is q for r in routed for q in r.parameters())}
        shard(model, 2, "cpu")
        waiting.materialize(model, "cpu")
    assert len(names) > 2
    for name in names:  # the second of two replicas, each of 32 experts
        assert drawn[name] == list(range(16, 32))


class Own(nn.Module):
    """Draws itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        nn.init.constant_(self.linear.weight, 2.0)


def test_a_recipes_model_that_draws_itself_is_built_whole() -> None:
    recipe = load(DRAWS_ITSELF)
    model, waiting = build_uncut(recipe, ShardedStrategy(Sharded(ep=1)))
    expected = build_model(recipe)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), expected.parameters(), strict=True))
    waiting.materialize(model, "cpu")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), expected.parameters(), strict=True))


def test_a_model_that_draws_itself_is_not_covered() -> None:
    with defer_init() as waiting:
        model = Own()
    assert not waiting.covers(model)
    with defer_init() as waiting:
        model = Own()
        init_weights(model.linear, Init(), 0)
    assert waiting.covers(model)
    assert Own().linear.weight.eq(2).all(), "the hook is gone"


def test_modules_made_into_a_bank_keep_the_weights_they_came_with() -> None:
    with defer_init() as waiting:
        model = nn.ModuleDict({"bank": ExpertBank.from_modules([nn.Linear(3, 3)], 3)})
        init_weights(model, Init(), 0)
    assert not waiting.covers(model)


class Shared(nn.Module):
    """One matrix under two names, made before either."""

    def __init__(self) -> None:
        super().__init__()
        both = nn.Parameter(torch.ones(4, 4))
        self.one, self.other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.one.weight = self.other.weight = both


def test_a_matrix_that_two_modules_share_is_one_without_memory_too() -> None:
    with defer_init() as waiting:
        model = Shared()
        init_weights(model, Init(), 0)
    assert model.one.weight is model.other.weight and model.one.weight.is_meta
    waiting.materialize(model, "cpu")
    assert model.one.weight is model.other.weight
    expected = Shared()
    init_weights(expected, Init(), 0)
    assert torch.equal(model.one.weight, expected.one.weight)


class Particular(TopKRouter):
    """Draws a vector, keeps another."""

    def __init__(self) -> None:
        super().__init__(TopK(top_k=1), LayerDims(dim=3, num_experts=2))
        self.drawn_E, self.kept_E = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.tensor([5.0, 6.0]))

    def init_weights(self, init: Init) -> None:
        nn.init.normal_(self.drawn_E)
        init.draw(self.weight_ED)


def test_a_router_may_draw_vectors_and_keep_others() -> None:
    with defer_init() as waiting:
        router = Particular()
        init_weights(router, Init(), 4)
    waiting.materialize(router, "cpu")
    expected = Particular()
    init_weights(expected, Init(), 4)
    for p, q in zip(router.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)


class Forgetful(GluExperts):
    """Leaves a matrix as it was built."""

    def init_weights(self, init: Init) -> None:
        init.draw(self.w_down_EOH)


def test_a_matrix_that_nobody_draws_is_told() -> None:
    with defer_init() as waiting:
        model = nn.ModuleDict({"bank": Forgetful(Glu(count=2, hidden=4), LayerDims(dim=3, num_experts=2))})
        init_weights(model, Init(), 0)
    with pytest.raises(MoekitError, match=r"bank\.w_gate_up_EHD: Forgetful .* init_weights does not write"):
        waiting.materialize(model, "cpu")


def test_a_parameter_without_a_shape_yet_is_left_alone() -> None:
    with defer_init():
        assert nn.parameter.is_lazy(cast(nn.Parameter, nn.LazyLinear(3).weight))
