"""Recipes at published sizes: exact totals, published counts to their rounding, what transformers configures."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moekit import load, to_plain
from moekit.params import count_parameters
from moekit.registry import current
from moekit_hf.matching import differences, format_of, model_of
from moekit_plan.params_cli import rounded_like

COUNTS = {  # in total; active with both embeddings, with the head alone, without either
    "glm-4.5": (352_797_829_024, 33_632_266_144, 32_856_319_904, 32_080_373_664),
    "glm-4.5-air": (106_852_251_264, 13_424_129_664, 12_803_372_672, 12_182_615_680),
    "gpt-oss-120b": (116_829_156_672, 5_711_982_912, 5_132_849_472, 4_553_716_032),
    "gpt-oss-20b": (20_914_757_184, 4_187_440_704, 3_608_307_264, 3_029_173_824),
    "kimi-k2": (1_026_408_232_448, 32_861_500_928, 31_687_095_808, 30_512_690_688),
    "llama-4-maverick": (400_711_848_960, 17_184_691_200, 16_150_205_440, 15_115_719_680),
    "llama-4-scout": (107_769_861_120, 17_172_894_720, 16_138_408_960, 15_103_923_200),
    "minimax-m2": (228_689_764_864, 11_030_553_088, 10_415_956_480, 9_801_359_872),
    "mixtral-8x22b": (140_630_071_296, 39_161_468_928, 38_960_142_336, 38_758_815_744),
    "mixtral-8x7b": (46_702_792_704, 12_879_925_248, 12_748_853_248, 12_617_781_248),
    "moonlight-16b-a3b": (15_960_110_208, 2_914_776_192, 2_579_231_872, 2_243_687_552),
    "olmoe-1b-7b": (6_919_161_856, 1_282_017_280, 1_178_994_688, 1_075_972_096),
    "phi-3.5-moe": (41_873_153_344, 6_640_999_744, 6_509_665_600, 6_378_331_456),
    "qwen1.5-moe-a2.7b": (14_315_784_192, 2_689_173_504, 2_378_008_576, 2_066_843_648),
    "qwen3-235b-a22b": (235_093_634_560, 22_190_763_520, 21_568_433_664, 20_946_103_808),
    "qwen3-30b-a3b": (30_532_122_624, 3_353_032_704, 3_041_867_776, 2_730_702_848),
    "switch-base-8": (619_339_008, 222_977_280, 222_977_280, 198_302_976),
}

UNPUBLISHED = {"switch-base-8"}
"""Released sizes of which the paper gives no numbers."""

DIFFERENT = {
    "glm-4.5": {"total": "353B"},  # 355B with the layer of multi-token prediction
    "glm-4.5-air": {"total": "107B"},  # published truncated
    "llama-4-maverick": {"total": "401B"},  # published rounded, images included
    "llama-4-scout": {"total": "108B"},  # 109B with what reads images
    "minimax-m2": {"total": "229B"},  # published rounded to ten
    "qwen3-30b-a3b": {"active": "3.4B"},  # published truncated
}
"""Published numbers that the published sizes do not make, and what they make, to as many digits."""


def test_every_recipe_is_counted() -> None:
    assert set(COUNTS) == {recipe.name for recipe in current().recipes if recipe.plugin == "hf"}


@pytest.mark.parametrize("name", COUNTS)
def test_exact_counts(name: str) -> None:
    count = count_parameters(load(name))
    found = (count.total, *(count.active(reading) for reading in ("both", "without_input", "without_either")))
    assert found == COUNTS[name]


@pytest.mark.parametrize("name", sorted(set(COUNTS) - UNPUBLISHED))
def test_published_counts(name: str) -> None:
    recipe = load(name)
    assert recipe.paper is not None and recipe.paper.reading
    count = count_parameters(recipe)
    found = {"total": count.total, "active": count.active(recipe.paper.reading)}
    for what, number in found.items():
        published = getattr(recipe.paper, what)
        other = DIFFERENT.get(name, {}).get(what)
        assert rounded_like(number, published) == (other or published)
        assert other is None or other != published


SCOUT = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip

DEFAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral-8x7b": ("mixtral", {}),
    "gpt-oss-120b": ("gpt_oss", {}),
    "gpt-oss-20b": ("gpt_oss", {"num_hidden_layers": 24, "num_local_experts": 32}),
    "glm-4.5-air": ("glm4_moe", {"attention_bias": True, "head_dim": 128, "rope_theta": 1e6}),
    "llama-4-maverick": (
        "llama4_text",
        {"num_local_experts": 128, "interleave_moe_layer_step": 2, "use_qk_norm": False},
    ),
    "llama-4-scout": ("llama4_text", {"rope_parameters": SCOUT}),
    "minimax-m2": ("minimax_m2", {"rotary_dim": 64}),
    "deepseek_v3-671b": ("deepseek_v3", {}),
    "phi-3.5-moe": (
        "phimoe",
        {"attention_bias": True, "lm_head_bias": True, "sliding_window": 131072, "rope_theta": 1e4},
    ),
    "qwen1.5-moe-a2.7b": ("qwen2_moe", {"rope_theta": 1e6}),
    "olmoe-1b-7b": ("olmoe", {"intermediate_size": 1024}),
    "switch-base-8": (
        "switch_transformers",
        {"d_ff": 3072, "num_sparse_encoder_layers": 6, "num_sparse_decoder_layers": 6},
    ),
    "qwen3-30b-a3b": (
        "qwen3_moe",
        {"num_hidden_layers": 48, "head_dim": 128, "norm_topk_prob": True, "rope_theta": 1e6},
    ),
}
"""Families whose default configuration in transformers is a released model, and the fields in which others differ."""

YARN = {"deepseek_v3-671b": "model.attention.yarn=null"}  # the default is the model before it


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_recipe_is_what_transformers_configures(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    model_type, fields = DEFAULTS[name]
    config = json.loads(transformers.AutoConfig.for_model(model_type, **fields).to_json_string())
    theirs = model_of(format_of(config)[1], config, "its default")
    ours = load(name, [YARN[name]] if name in YARN else []).model
    assert differences(to_plain(ours), to_plain(theirs)) == []
