"""Which recipes are models of transformers, and of what sizes; the library is not needed for that."""

from __future__ import annotations

import pytest

from moekit import load
from moekit.errors import MoekitError
from moekit.spec import to_plain
from moekit_bench.peers.transformers import family_of

MIXTRAL = [
    *("model.attention={use: gqa, heads: 4, kv_heads: 2, head_dim: 32}", "model.mtp=null", "model.moe.shared=null"),
    "model.moe.at={first: 0}",
    "model.moe.router={top_k: 2, score: softmax, score_over: chosen, renormalize: false, scale: 1.0}",
    "model.moe.router={groups: 1, top_groups: null, group_score: max}",
    "model.moe.balancers=null",
    "model.moe.experts={use: glu, count: 8, hidden: 96}",
]


def test_deepseek_v3_without_multi_token_prediction_is_their_deepseek_v3() -> None:
    plain = to_plain(load("deepseek_v3", ["model.mtp=null"]))
    family = family_of(plain)
    assert family.name == "DeepseekV3"
    assert family.sizes(plain["model"]) == {
        "intermediate_size": 432,
        "moe_intermediate_size": 48,
        "num_key_value_heads": 4,
        "q_lora_rank": 96,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "n_shared_experts": 1,
        "n_group": 8,
        "topk_group": 4,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 1,
        "num_nextn_predict_layers": 0,
    }


def test_a_recipe_of_mixtral_is_their_mixtral() -> None:
    plain = to_plain(load("deepseek_v3", MIXTRAL))
    family = family_of(plain)
    assert family.name == "Mixtral"
    assert family.sizes(plain["model"]) == {
        "intermediate_size": 96,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "sliding_window": None,
    }


def test_a_recipe_of_no_family_is_rejected_with_its_differences() -> None:
    said = "DeepseekV3 and Mixtral are known here; the recipe differs least from DeepseekV3, by"
    with pytest.raises(MoekitError, match=rf"{said}\n  model\.mtp=\{{'depth': 1\}} \(expected None\)\Z"):
        family_of(to_plain(load("deepseek_v3")))


def test_a_recipe_of_another_kind_of_model_is_rejected() -> None:
    plain = to_plain(load("jacobs1991"))
    with pytest.raises(MoekitError, match=r"model\.use=mixture"):
        family_of(plain)
