"""What families share: rows of their tables, and groups of fields with the options that they describe. Torch-free.

Each group has two functions: ``x_options`` reads fields into options, ``x_fields`` writes options as fields.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from moekit_hf.fields import Fields, FormatError
from moekit_hf.format import Node
from moekit_hf.rules import Rule, rotary_pairs

# ---- rows of tables --------------------------------------------------------------------------------------------------

_L, _B = "model.layers.{i}.", "blocks.{i}."

ENDS = (
    Rule("model.embed_tokens.weight", "embedding.weight"),
    Rule("model.norm.weight", "norm.weight"),
    Rule("lm_head.weight", "head.weight"),
)
"""Embedding, last norm and head; a tied model has no head of its own."""

NORMS = (
    Rule(_L + "input_layernorm.weight", _B + "attention_norm.weight"),
    Rule(_L + "post_attention_layernorm.weight", _B + "ffn_norm.weight"),
)
"""The norm before attention, and the one before the feed-forward part."""

ATTENTION = (
    *(
        Rule(f"{_L}self_attn.{theirs}_proj.{what}", f"{_B}attention.{ours}.{what}")
        for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out"))
        for what in ("weight", "bias")
    ),
    Rule(_L + "self_attn.q_norm.weight", _B + "attention.q_norm.weight"),
    Rule(_L + "self_attn.k_norm.weight", _B + "attention.k_norm.weight"),
)
"""Grouped-query attention; both rotate pairs (i, i + R/2), so that rows have one order."""


def glu(theirs: str, ours: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> list[Rule]:
    """A gated feed-forward net, by expert if ``theirs`` names one: our gate and up are halves of one matrix."""
    lead: Any = "each" if "{e}" in theirs else "one"
    return [
        Rule(f"{theirs}.{gate}.weight", f"{ours}.w_gate_up_EHD", half=0, lead=lead),
        Rule(f"{theirs}.{up}.weight", f"{ours}.w_gate_up_EHD", half=1, lead=lead),
        Rule(f"{theirs}.{down}.weight", f"{ours}.w_down_EOH", lead=lead),
        Rule(f"{theirs}.{gate}.bias", f"{ours}.b_gate_up_EH", half=0, lead=lead),
        Rule(f"{theirs}.{up}.bias", f"{ours}.b_gate_up_EH", half=1, lead=lead),
        Rule(f"{theirs}.{down}.bias", f"{ours}.b_down_EO", lead=lead),
    ]


DENSE = tuple(glu(_L + "mlp", _B + "ffn"))
"""The feed-forward part of a dense layer."""

ROUTER = (Rule(_L + "mlp.gate.weight", _B + "ffn.router.weight_ED"),)
EXPERTS = tuple(glu(_L + "mlp.experts.{e}", _B + "ffn.experts"))
"""Router and routed experts, as most families name them."""

SHARED = tuple(glu(_L + "mlp.shared_experts", _B + "ffn.shared"))
"""Shared experts, which are one net in their files."""


SELECTION_BIAS = Rule(_L + "mlp.gate.e_score_correction_bias", _B + "ffn.balancers.bias.bias_E")
"""The bias that DeepSeek-V3 adds to affinities to choose experts."""


# ---- the whole decoder -----------------------------------------------------------------------------------------------


def decoder_options(fields: Fields) -> Node:
    """Sizes, the norms' epsilon, tied embeddings; SwiGLU is the one activation, and dropout is refused."""
    fields.demand("quantization_config", None, "quantised weights are not read: convert them to bfloat16 first")
    fields.demand("hidden_act", "silu", "only silu is known in this family", default="silu")
    fields.demand("attention_dropout", 0, "attention here has no dropout", default=0)
    return {
        "use": "decoder",
        "vocab": fields.number("vocab_size"),
        "dim": fields.number("hidden_size"),
        "depth": fields.number("num_hidden_layers"),
        "norm_eps": fields.take("rms_norm_eps", 1e-6),
        "tied": fields.take("tie_word_embeddings", False),
    }


def decoder_fields(model: Node) -> dict[str, Any]:
    """The same as fields."""
    return {
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "vocab_size": model["vocab"],
        "hidden_size": model["dim"],
        "num_hidden_layers": model["depth"],
        "rms_norm_eps": model["norm_eps"],
        "tie_word_embeddings": model["tied"],
    }


# ---- attention -------------------------------------------------------------------------------------------------------


def gqa_options(fields: Fields, model: Node, theta: float = 10000.0) -> Node:
    """Grouped-query attention of a decoder; ``theta`` is the family's base of rotary angles, if none is given."""
    heads = fields.number("num_attention_heads")
    head_dim = fields.number("head_dim", model["dim"] // heads)
    return {
        "use": "gqa",
        "heads": heads,
        "kv_heads": fields.number("num_key_value_heads", heads),
        "head_dim": head_dim,
        "norm_eps": model["norm_eps"],
        **rope_options(fields, theta),
        **_partial(fields, head_dim),
    }


def _partial(fields: Fields, head_dim: int) -> Node:
    """``partial_rotary_factor`` or ``rotary_dim``: how much of a head is rotated."""
    given = fields.config.get("rope_parameters")
    inside = given.get("partial_rotary_factor") if isinstance(given, dict) else None
    share = fields.take("partial_rotary_factor", inside)
    rotary = fields.take("rotary_dim", head_dim if share is None else int(head_dim * share))
    return {} if rotary == head_dim else {"rotary_dim": rotary}


def gqa_fields(model: Node) -> dict[str, Any]:
    """The same as fields."""
    attention = model["attention"]
    fields = {
        "num_attention_heads": attention["heads"],
        "num_key_value_heads": attention["kv_heads"] or attention["heads"],
        "head_dim": attention["head_dim"],
        **rope_fields(attention),
    }
    if attention["rotary_dim"] is not None:
        fields["rope_parameters"]["partial_rotary_factor"] = attention["rotary_dim"] / attention["head_dim"]
    return fields


def refuse_window(fields: Fields) -> None:
    """Qwen's sliding window, which counts only if ``use_sliding_window`` is true: no released model has it.

    Raises:
        FormatError: the model has one.
    """
    fields.demand("use_sliding_window", False, "a window in some layers alone is no option", default=False)
    for name in ("sliding_window", "max_window_layers"):
        fields.take(name, None)
    kinds = set(fields.take("layer_types", []))
    if kinds - {"full_attention"}:
        raise FormatError(f"{fields.where}: layer_types={sorted(kinds)}: only full_attention is known in this family")


def mla_options(fields: Fields) -> Node:
    """DeepSeek's latent attention. The norms of the latents have an epsilon of 1e-6, whatever ``rms_norm_eps`` says."""
    heads = fields.number("num_attention_heads")
    fields.demand("num_key_value_heads", heads, "every head has keys of its own", default=heads)
    fields.demand("attention_bias", False, "latent attention has no biases here", default=False)
    rope = fields.number("qk_rope_head_dim")
    nope = fields.number("qk_nope_head_dim")
    fields.demand("head_dim", rope, "transformers sets it to qk_rope_head_dim", default=rope)
    fields.demand("qk_head_dim", nope + rope, "transformers sets it to the sum of both", default=nope + rope)
    return {
        "use": "mla",
        "heads": heads,
        "query_rank": fields.take("q_lora_rank", None),
        "kv_rank": fields.number("kv_lora_rank"),
        "nope_dim": nope,
        "rope_dim": rope,
        "value_dim": fields.number("v_head_dim"),
        "norm_eps": 1e-6,
        **rope_options(fields, temperature=_mla_temperature),
    }


def mla_fields(model: Node) -> dict[str, Any]:
    """The same as fields."""
    attention = model["attention"]
    fields = {
        "num_attention_heads": attention["heads"],
        "num_key_value_heads": attention["heads"],
        "q_lora_rank": attention["query_rank"],
        "kv_lora_rank": attention["kv_rank"],
        "qk_nope_head_dim": attention["nope_dim"],
        "qk_rope_head_dim": attention["rope_dim"],
        "v_head_dim": attention["value_dim"],
        **rope_fields(attention),
    }
    if (yarn := attention["yarn"]) is not None:
        rope: dict[str, Any] = fields["rope_parameters"]
        rope.pop("attention_factor", None)
        rope |= {"mscale": round(10 * yarn["mscale"], 10), "mscale_all_dim": round(10 * yarn["mscale"], 10)}
    return fields


def mla_rules(model: Node) -> list[Rule]:
    """Latent attention. Theirs rotates neighbouring pairs of rows, ours halves: the rotary rows change their order."""
    a = model["attention"]
    q_up = rotary_pairs(a["heads"], a["nope_dim"], a["rope_dim"])
    kv_down = rotary_pairs(1, a["kv_rank"], a["rope_dim"])
    theirs, ours = _L + "self_attn.", _B + "attention."
    return [
        Rule(
            theirs + ("q_proj" if a["query_rank"] is None else "q_b_proj") + ".weight", ours + "q_up.weight", view=q_up
        ),
        Rule(theirs + "q_a_proj.weight", ours + "q_down.weight"),
        Rule(theirs + "q_a_layernorm.weight", ours + "q_norm.weight"),
        Rule(theirs + "kv_a_proj_with_mqa.weight", ours + "kv_down.weight", view=kv_down),
        Rule(theirs + "kv_a_layernorm.weight", ours + "kv_norm.weight"),
        Rule(theirs + "kv_b_proj.weight", ours + "kv_up.weight"),
        Rule(theirs + "o_proj.weight", ours + "out.weight"),
    ]


# ---- rotary positions ------------------------------------------------------------------------------------------------


def _temperature(given: Fields, factor: float) -> float:
    """m of ``m ln s + 1``, by which queries and keys are each multiplied."""
    for name in ("mscale", "mscale_all_dim"):
        given.demand(name, None, "it is known in DeepSeek's families alone")
    attention = given.take("attention_factor", None)
    return 0.1 if attention is None else round((float(attention) - 1) / math.log(factor), 12)


def _mla_temperature(given: Fields, factor: float) -> float:
    """The same from ``mscale_all_dim``; ``mscale`` would multiply the rotary part alone, and equals it everywhere."""
    given.demand("attention_factor", None, "mscale and mscale_all_dim say it in this family")
    both = given.take("mscale_all_dim")
    given.demand("mscale", both, "the rotary part alone would have another scale")
    return round(0.1 * float(both), 12)


def rope_options(
    fields: Fields, theta: float = 10000.0, temperature: Callable[[Fields, float], float] = _temperature
) -> Node:
    """``rope_theta`` and ``yarn``, from ``rope_parameters`` or the older ``rope_theta`` and ``rope_scaling``.

    ``llama3`` is YaRN whose ramp is linear in turns and whose scores keep their scale. ``temperature`` reads YaRN's m.
    """
    given, base = _rope(fields, theta)
    kind = "default" if given is None else given.take("rope_type", given.take("type", "default"))
    if given is not None:
        given.take("partial_rotary_factor", None)  # read by the attention, of whose heads it is a share
    if given is None or kind == "default":
        if given is not None:
            given.refuse_unread()
        return {"rope_theta": base}
    factor = float(given.take("factor"))
    original = given.take("original_max_position_embeddings", fields.take("max_position_embeddings", 0))
    yarn: Node = {"factor": factor, "original": original}
    if kind == "yarn":
        yarn |= {"beta_fast": float(given.take("beta_fast", 32)), "beta_slow": float(given.take("beta_slow", 1))}
        yarn |= {"mscale": temperature(given, factor), "truncate": given.take("truncate", True)}
    elif kind == "llama3":
        slow, fast = given.take("low_freq_factor"), given.take("high_freq_factor")
        yarn |= {"beta_slow": float(slow), "beta_fast": float(fast), "mscale": 0.0, "ramp": "turns"}
    else:
        raise FormatError(f"{given.where}: rope_type={kind!r} is not known; expected default, yarn or llama3")
    given.refuse_unread()
    return {"rope_theta": base, "yarn": yarn}


def _rope(fields: Fields, theta: float) -> tuple[Fields | None, float]:
    given = fields.nested("rope_parameters") or fields.nested("rope_scaling")
    base = fields.take("rope_theta", theta)
    return given, float(base if given is None else given.take("rope_theta", base))


def rope_fields(attention: Node) -> dict[str, Any]:
    """The same as fields."""
    yarn, rope = attention["yarn"], {"rope_type": "default", "rope_theta": attention["rope_theta"]}
    if yarn is None:
        return {"rope_parameters": rope}
    rope |= {"factor": yarn["factor"], "original_max_position_embeddings": yarn["original"]}
    if yarn["ramp"] == "turns":
        rope |= {"rope_type": "llama3", "low_freq_factor": yarn["beta_slow"], "high_freq_factor": yarn["beta_fast"]}
    else:
        rope |= {"rope_type": "yarn", "beta_fast": yarn["beta_fast"], "beta_slow": yarn["beta_slow"]}
        rope |= {} if yarn["truncate"] else {"truncate": False}
        rope |= {} if yarn["mscale"] == 0.1 else {"attention_factor": yarn["mscale"] * math.log(yarn["factor"]) + 1}
    return {"rope_parameters": rope}


# ---- which layers are mixtures ---------------------------------------------------------------------------------------


def sparse_options(fields: Fields, depth: int) -> Node | None:
    """Qwen's ``decoder_sparse_step`` and ``mlp_only_layers`` as ``at``; None for a model without a mixture."""
    step, dense = fields.number("decoder_sparse_step", 1), set(fields.take("mlp_only_layers", []))
    layers = [i for i in range(step - 1, depth, step) if i not in dense]
    if not layers:
        return None
    if layers == list(range(step - 1, depth, step)):
        return {"first": 0} if step == 1 else {"every": step}
    return {"layers": layers}


def sparse_fields(model: Node) -> dict[str, Any]:
    """The same as fields: a step, or every layer that is not a mixture."""
    if model["moe"]["at"]["every"] is not None:
        return {"decoder_sparse_step": model["moe"]["at"]["every"], "mlp_only_layers": []}
    mixtures = mixture_layers(model)
    return {"decoder_sparse_step": 1, "mlp_only_layers": [i for i in range(model["depth"]) if i not in mixtures]}


def mixture_layers(model: Node) -> list[int]:
    """The layers of a decoder that are mixtures."""
    return indices(model["moe"]["at"], model["depth"])


def indices(at: Node, depth: int) -> list[int]:
    """The layers that an ``at`` names, in a stack of ``depth``."""
    if at["first"] is not None:
        return list(range(at["first"], depth))
    return list(range(at["every"] - 1, depth, at["every"])) if at["every"] is not None else sorted(at["layers"])


def first_of(model: Node) -> int:
    """The first mixture of a decoder in which all layers from there on are mixtures.

    Raises:
        FormatError: some are not.
    """
    layers = mixture_layers(model)
    if layers != list(range(layers[0], model["depth"])):
        raise FormatError(f"mixtures at {layers}: this family has mixtures from one layer on")
    return layers[0]


# ---- DeepSeek-V3's mixture, also in GLM-4.5 --------------------------------------------------------------------------


def biased_moe_options(fields: Fields) -> Node:
    """Dense layers first; sigmoid affinities, groups, a selection bias; gates renormalised, then scaled."""
    groups, hidden = fields.number("n_group", 1), fields.number("moe_intermediate_size")
    chosen = fields.number("topk_group", groups)
    return {
        "at": {"first": fields.take("first_k_dense_replace", 0)},
        "router": {
            "use": "topk",
            "score": "sigmoid",
            "top_k": fields.number("num_experts_per_tok"),
            "renormalize": fields.take("norm_topk_prob", True),
            "scale": fields.take("routed_scaling_factor", 1.0),
            **({"groups": groups, "top_groups": chosen, "group_score": "top2_sum"} if groups > 1 else {}),
        },
        "experts": {
            "use": "glu",
            "count": fields.either("n_routed_experts", "num_experts", "num_local_experts"),
            "hidden": hidden,
        },
        "shared": {"use": "glu", "hidden": fields.number("n_shared_experts") * hidden},  # one net in their files
        "balancers": {"bias": {"use": "sign_bias"}},
    }


def biased_moe_fields(model: Node) -> dict[str, Any]:
    """The same as fields."""
    moe = model["moe"]
    router, experts = moe["router"], moe["experts"]
    return {
        "first_k_dense_replace": first_of(model),
        "num_experts_per_tok": router["top_k"],
        "norm_topk_prob": router["renormalize"],
        "routed_scaling_factor": router["scale"],
        "n_group": router["groups"],
        "topk_group": router["top_groups"] or router["groups"],
        "n_routed_experts": experts["count"],
        "moe_intermediate_size": experts["hidden"],
        "n_shared_experts": moe["shared"]["count"] * moe["shared"]["hidden"] // experts["hidden"],
    }
