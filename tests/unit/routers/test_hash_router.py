"""The hash router: a fixed table from token ids to experts, and models that pass the ids."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

import moekit
from moekit.contracts import LayerDims, Source
from moekit.errors import MoekitError, SpecError
from moekit.registry import build
from moekit.spec import load
from moekit_routers.hash import Hash
from moekit_routers.hash.module import HashRouter


def router_of(vocab: int = 19, seed: int = 0, experts: int = 4) -> HashRouter:
    return HashRouter(Hash(vocab=vocab, seed=seed), LayerDims(dim=6, num_experts=experts))


def test_the_load_depends_on_token_ids_alone() -> None:
    router = router_of()
    token_T = torch.randint(19, (200,))
    one, other = (router(torch.randn(200, 6), token_T=ids) for ids in (token_T, token_T.flip(0)))
    assert one.load_E().tolist() == other.load_E().tolist()
    assert torch.equal(one.expert_TK, other.expert_TK.flip(0))
    assert one.expert_TK[:, 0].tolist() == [int(router.expert_V[token]) for token in token_T]
    assert torch.equal(one.gate_TK, torch.ones(200, 1)) and not one.gate_TK.requires_grad


def test_experts_have_equally_many_ids_within_one() -> None:
    assert sorted(Counter(router_of().expert_V.tolist()).values()) == [4, 5, 5, 5]


def test_the_table_depends_on_the_seed_alone() -> None:
    before = torch.get_rng_state()
    assert torch.equal(router_of(seed=3).expert_V, router_of(seed=3).expert_V)
    assert not torch.equal(router_of(seed=3).expert_V, router_of(seed=4).expert_V)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_checkpoint_keeps_the_table() -> None:
    saved, other = router_of(seed=3), router_of(seed=4)
    other.load_state_dict(saved.state_dict())
    assert torch.equal(other.expert_V, saved.expert_V)


def test_without_token_ids_the_layer_says_how_to_give_them() -> None:
    layer = moekit.layer(dim=6, router={"use": "hash", "vocab": 19}, experts={"use": "ffn", "count": 4, "hidden": 5})
    y, report = layer(torch.randn(2, 3, 6), tokens=torch.tensor([[1, 2, 3], [3, 2, 1]]))
    assert y.shape == (2, 3, 6) and int(report.load_E.sum()) == 6
    with pytest.raises(MoekitError, match="the hash router reads token ids, and was given none\n  expected layer"):
        layer(torch.randn(2, 3, 6))
    with pytest.raises(ValueError, match=re.escape("tokens is torch.int64 [3]; expected torch.int64 [2, 3]")):
        layer(torch.randn(2, 3, 6), tokens=torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=re.escape("tokens is torch.float32 [2, 3]; expected torch.int64 [2, 3]")):
        layer(torch.randn(2, 3, 6), tokens=torch.ones(2, 3))


def test_fewer_ids_than_experts_and_a_selection_bias_are_rejected() -> None:
    with pytest.raises(MoekitError, match="vocab=3 gives no token id to some of the 4 experts"):
        router_of(vocab=3)
    with pytest.raises(MoekitError, match="a selection bias has no effect on it"):
        router_of()(torch.randn(2, 6), token_T=torch.tensor([0, 1]), selection_bias_E=torch.zeros(4))


def test_a_model_of_cases_rejects_a_router_that_reads_token_ids() -> None:
    with pytest.raises(SpecError, match="router Hash reads token ids, and cases have none"):
        load("jacobs1991", ["model.moe.router={use: hash, vocab: 9}", "model.moe.dispatcher=grouped"])


HASH = ["model.moe.router={use: hash, vocab: '${model.vocab}'}", "model.moe.balancers=null", "model.dim=16"]
RUN_ON_TOKENS = {
    "lineage/hash": ["model.dim=16", "model.attention.head_dim=4"],
    "deepseek_v3": [*HASH, "model.depth=2"],  # with multi-token prediction
    "shazeer2017": HASH,
    "switch": HASH,  # an encoder and a decoder
}


@pytest.mark.parametrize("recipe", RUN_ON_TOKENS)
def test_language_models_pass_the_ids_of_each_position_to_their_routers(recipe: str) -> None:
    """In training, with multi-token prediction, and while decoding with a cache."""
    spec: Any = load(recipe, RUN_ON_TOKENS[recipe]).model
    model = build(replace(spec, recompute="blocks") if hasattr(spec, "recompute") else spec)
    tokens_BS, pairs = torch.randint(20, (2, 9)), spec.takes == "pairs"
    given: Any = {"source": Source(torch.randint(20, (2, 5)), None)} if pairs else {}
    output = model(tokens_BS, **given)
    table = next(module.expert_V for module in model.modules() if isinstance(module, HashRouter))
    assert output.reports
    for name, report in output.reports.items():
        ids = given["source"].tokens if name in output.of_source else tokens_BS[:, int(name.startswith("mtp")) :]
        assert torch.equal(report.routing.expert_TK[:, 0], table[ids.flatten()]), name
    if (cache := model.start_cache(**given)) is not None:
        model.eval()
        model.decode(tokens_BS[:, :4], cache)
        for name, report in model.decode(tokens_BS[:, 4:6], cache).reports.items():
            if name not in output.of_source:
                assert torch.equal(report.routing.expert_TK[:, 0], table[tokens_BS[:, 4:6].flatten()]), name
