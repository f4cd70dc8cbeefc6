"""A configuration is read strictly: what is not understood, and could change the function, is refused."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_folders import CONFIG

from moekit import to_plain
from moekit.registry import current
from moekit.spec import component_spec
from moekit_hf.fields import INERT, Fields, FormatError
from moekit_hf.matching import format_of, misfit, model_of


def model_with(**fields: Any) -> Any:
    config = {**CONFIG, **fields}
    return model_of(format_of(config)[1], config, "config.json")


def test_a_configuration_is_a_model() -> None:
    model = model_with()
    assert (model.vocab, model.dim, model.depth, model.moe.router.top_k) == (300, 16, 2, 2)
    assert model.attention.rope_theta == 1e6


def test_both_ways_to_write_rotary_positions_are_one_model() -> None:
    yarn = {"factor": 4.0, "original_max_position_embeddings": 16}
    old = model_with(rope_scaling={"type": "yarn", **yarn})
    new = model_with(rope_theta=None, rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, **yarn})
    assert old == new and old.attention.yarn.factor == 4
    assert model_with(rope_scaling=None) == model_with(rope_parameters={"rope_type": "default", "rope_theta": 1e6})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mystery": 3}, r"this family knows no field mystery=3\n  it might change what the model computes"),
        ({"hidden_act": "gelu"}, r"hidden_act='gelu' cannot be imported: only silu is known"),
        ({"attention_dropout": 0.1}, r"attention_dropout=0\.1 cannot be imported"),
        ({"router_jitter_noise": 0.1}, "their jitter also multiplies the experts' input"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised weights are not read"),
        ({"rope_scaling": {"type": "proportional", "factor": 2.0}}, "rope_type='proportional' is not known"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "mystery": 1}}, "rope_scaling: this family knows no field"),
        ({"rope_scaling": 3}, "rope_scaling=3 is not a mapping"),
        ({"vocab_size": None}, "the field 'vocab_size' is missing"),
        ({"hidden_size": "16"}, "hidden_size='16' is not a whole number above 0"),
        ({"num_hidden_layers": 10**9}, r"num_hidden_layers=1000000000 is not a number of layers up to 10,000"),
        ({"rope_theta": "x"}, "rope_theta='x' is not a finite number"),
        ({"rope_theta": True}, "rope_theta=True is not a finite number"),
        ({"rope_theta": float("nan")}, "rope_theta=nan is not a finite number"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false' is not true or false"),
        ({"rope_scaling": {"type": "yarn", "factor": 1.0, "attention_factor": 2.0}}, "factor=1.0 scales nothing"),
        ({"num_experts_per_tok": 9}, r"describes no model of ours\n.*top_k=9 is more than the 3 experts"),
        ({"model_type": "llama4", "text_config": {}}, "also reads images.*AutoModelForCausalLM.*save_pretrained"),
        ({"model_type": "mamba"}, r"model_type='mamba': no format is for it\n  known: .*mixtral"),
    ],
)
def test_what_is_not_understood_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=f"(?s){message}"):
        model_with(**fields)


def test_fields_that_ask_for_nothing_and_inert_ones_are_let_pass() -> None:
    assert model_with(mystery=None, other=False, third=0) == model_with()
    assert model_with(bos_token_id=7, router_aux_loss_coef=0.3) == model_with()
    assert all(why for why in INERT.values())


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16, "attention_factor": 1.2}
LONG |= {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6}


@pytest.mark.parametrize(
    ("name", "rope", "message"),
    [
        ("glm4-moe", YARN, "YaRN in a part of each head"),
        ("deepseek-v3", {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}, "latent attention has no stretch"),
        ("deepseek-v3", {**YARN, "mscale": 0, "mscale_all_dim": 0}, "mscale_all_dim=0 .*expected a number above 0"),
        ("deepseek-v2", {**YARN, "mscale": 0.0, "mscale_all_dim": 0.0}, "mscale_all_dim=0 .*expected a number above 0"),
        ("llama", {**YARN, "original_max_position_embeddings": 6}, "(?s)=6 is too short for YaRN.*at least 7"),
        ("llama", {**YARN, "beta_slow": 3}, "(?s)=16 is too short for YaRN.*at least 19"),
        ("llama4", YARN, "which are normed after that"),
        ("llama4", LONG, "which are normed after that"),
        ("llama", {**LONG, "short_mscale": 1.3}, "knows no field short_mscale"),
        ("llama", {**LONG, "short_factor": None}, "field 'short_factor' is missing"),
        ("llama", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}, "'max_position_embeddings' is missing"),
    ],
)
def test_rotary_positions_that_would_not_be_the_same_are_refused(name: str, rope: dict[str, Any], message: str) -> None:
    family = current().get("format", name).spec_class()
    config = {"rms_norm_eps": 1e-6, **family.tiny()[0], "rope_parameters": rope}
    with pytest.raises(FormatError, match=message):
        model_of(family, config, "config.json")


BIASED = {"n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0}
STATED: dict[str, dict[str, Any]] = {
    "glm4-moe": BIASED,
    "dots1": {**BIASED, "sliding_window": None},
    "gpt-oss": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "deepseek-v3": BIASED,
}
"""What a family's first tiny configuration leaves to transformers, and a file must state."""


def read(name: str, **fields: Any) -> Any:
    """The model of a family's first tiny configuration with other fields."""
    family = current().get("format", name).spec_class()
    config = {"rms_norm_eps": 1e-6, **family.tiny()[0], **STATED.get(name, {}), **fields}
    return to_plain(model_of(family, config, "config.json"))


def misfit_of(name: str, node: Any) -> list[str]:
    """What an export of a model in a family could not say."""
    model: Any = component_spec("model", node)
    return misfit(current().get("format", name).spec_class(), model)


PARTIAL = ("glm4-moe", "minimax-m2")
LATENT = ("deepseek-v2", "deepseek-v3")
WHOLE = [n.name for n in current().components("format") if n.plugin == "hf" and n.name not in (*PARTIAL, *LATENT)]
WHOLE.remove("switch-transformers")  # it has no rotary positions


@pytest.mark.parametrize("name", [*WHOLE, *LATENT])
def test_a_share_of_each_head_that_transformers_ignores_is_refused(name: str) -> None:
    share, rope = {"partial_rotary_factor": 0.5}, {"rope_type": "default", "rope_theta": 1e4}
    message = r"partial_rotary_factor=0\.5 cannot be imported: transformers rotates all of each head"
    with pytest.raises(FormatError, match=f"config.json: {message}"):
        read(name, **share)
    for group in ("rope_parameters", "rope_scaling"):
        with pytest.raises(FormatError, match=f"{group}: {message}"):
            read(name, **{group: {**rope, **share}})
    with pytest.raises(FormatError, match="knows no field rotary_dim=4"):
        read(name, rotary_dim=4)
    rope_theta = {"rope_parameters": {**rope, "partial_rotary_factor": 1.0}}
    assert read(name, partial_rotary_factor=1.0, **rope_theta) == read(name, rope_parameters=rope)


@pytest.mark.parametrize("name", WHOLE)
def test_a_part_of_each_head_is_exported_only_where_transformers_reads_it(name: str) -> None:
    node = read(name, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    node["attention"]["rotary_dim"] = 4
    assert "model.attention.rotary_dim: 4 here, None there" in misfit_of(name, node)


@pytest.mark.parametrize("name", PARTIAL)
def test_the_share_of_each_head_is_found_where_transformers_looks_first(name: str) -> None:
    """Heads are 12 wide."""
    half, linear = {"partial_rotary_factor": 0.5}, {"type": "linear", "factor": 2.0}
    wide = {**linear, "partial_rotary_factor": 1.0}
    for fields, rotary in (
        ({"rope_parameters": {"rope_theta": 1e4, **half}}, 6),
        ({**half, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 1.0}}, None),
        ({**half, "rope_parameters": {"rope_theta": 1e4}}, 6),
        ({"rope_parameters": {}, **half}, 6),
        ({"rope_scaling": wide}, None),
        ({"rope_scaling": wide, **half}, None),
        ({"rope_scaling": wide, "rope_parameters": half}, None),
        ({"rope_scaling": {}, "rope_parameters": {"partial_rotary_factor": 1.0}}, None),
        ({"rope_parameters": {}, "partial_rotary_factor": None}, None),
    ):
        assert read(name, **fields)["attention"]["rotary_dim"] == rotary, fields


def test_the_rotary_dim_of_minimax_counts_last() -> None:
    assert read("minimax-m2", rope_parameters=None, rotary_dim=4)["attention"]["rotary_dim"] == 4
    for fields in ({"partial_rotary_factor": 0.5}, {"rope_parameters": {"partial_rotary_factor": 0.5}}):
        assert read("minimax-m2", **fields, rotary_dim=4)["attention"]["rotary_dim"] == 6
    with pytest.raises(FormatError, match="knows no field rotary_dim=4"):
        read("glm4-moe", rotary_dim=4)


@pytest.mark.parametrize("name", PARTIAL)
def test_the_share_of_each_head_is_written_also_where_all_is_rotated(name: str) -> None:
    family = current().get("format", name).spec_class()
    for rotary, share in ((None, 1.0), (6, 0.5)):
        node = read(name)
        node["attention"]["rotary_dim"] = rotary
        assert family.config(node)["rope_parameters"]["partial_rotary_factor"] == share
        assert misfit_of(name, node) == []


def test_of_two_groups_of_rotary_fields_the_older_counts_if_it_is_not_empty() -> None:
    new = {"rope_type": "linear", "factor": 3.0}
    for old, factor in (({"type": "linear", "factor": 2.0}, 2.0), ({}, 3.0)):
        assert read("llama", rope_scaling=old, rope_parameters=new)["attention"]["stretch"]["factor"] == factor


def test_a_window_in_the_last_layers_of_dots1_is_refused_by_name() -> None:
    """Three layers; the fields that are missing are 4096 and 62."""
    for fields in ({"sliding_window": 6, "max_window_layers": 2}, {"sliding_window": 6, "max_window_layers": 0}):
        for more in ({}, {"layer_types": None}, {"use_sliding_window": False}):
            with pytest.raises(FormatError, match="sliding_window=6 counts in the layers from max_window_layers="):
                read("dots1", **fields, **more)
        assert read("dots1", **fields, layer_types=["full_attention"] * 3) == read("dots1")
    assert read("dots1", sliding_window=6, max_window_layers=3) == read("dots1", sliding_window=6) == read("dots1")
    assert read("dots1", sliding_window=None, max_window_layers=1) == read("dots1")
    family = current().get("format", "dots1").spec_class()
    without = {**family.tiny()[0], **BIASED, "rms_norm_eps": 1e-6}
    assert to_plain(model_of(family, without, "config.json")) == read("dots1")
    with pytest.raises(FormatError, match=r"sliding_window=4096 .* max_window_layers=62 on"):
        model_of(family, {**without, "num_hidden_layers": 63}, "config.json")
    deep = read("dots1", num_hidden_layers=63)
    assert family.config(deep)["sliding_window"] is None and misfit_of("dots1", deep) == []


@pytest.mark.parametrize("fields", [{}, {"rope_parameters": None}, {"rope_scaling": None}, {"rope_scaling": {}}])
def test_gpt_oss_without_rotary_fields_is_refused(fields: dict[str, Any]) -> None:
    """Since transformers then takes the YaRN of the released models; an empty ``rope_parameters`` is none of these."""
    with pytest.raises(FormatError, match="the field 'rope_parameters' is missing"):
        read("gpt-oss", **{"rope_parameters": None, **fields})
    assert read("gpt-oss", rope_parameters={})["attention"]["yarn"] is None


@pytest.mark.parametrize("name", LATENT)
def test_yarn_that_leaves_the_scale_of_scores_is_not_exported_as_latent_attention(name: str) -> None:
    """Its fields cannot say so: to transformers, mscale 0 is missing, and the rotary part is scaled."""
    node = read(name, rope_parameters={**YARN, "mscale": 1.0, "mscale_all_dim": 1.0})
    assert node["attention"]["yarn"]["mscale"] == 0.1 and misfit_of(name, node) == []
    node["attention"]["yarn"]["mscale"] = 0.0
    assert "mscale_all_dim=0 is not read here" in misfit_of(name, node)[0]


def test_a_number_under_two_names() -> None:
    assert Fields({"a": 3}).either("a", "b") == Fields({"a": 3, "b": 3}).either("a", "b") == 3
    for config in ({}, {"a": 3, "b": 4}):
        with pytest.raises(FormatError, match="one value of a or b is expected"):
            Fields(config).either("a", "b")


def test_every_family_has_a_name_of_its_own_and_a_source() -> None:
    families = [each.spec_class() for each in current().components("format")]
    assert len({each.model_type for each in families}) == len(families) >= 11
    assert all(each.source and each.architecture and each.tiny() for each in families)
