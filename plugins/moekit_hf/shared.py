"""What families share: rows of their tables, and groups of fields with the options that they describe. Torch-free.

Each group has two functions: ``x_options`` reads fields into options, ``x_fields`` writes options as fields.
"""

from __future__ import annotations

import math
from typing import Any

from moekit_hf.fields import Fields, FormatError
from moekit_hf.format import Node
from moekit_hf.rules import Rule

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
    ]


DENSE = tuple(glu(_L + "mlp", _B + "ffn"))
"""The feed-forward part of a dense layer."""

ROUTER = (Rule(_L + "mlp.gate.weight", _B + "ffn.router.weight_ED"),)
EXPERTS = tuple(glu(_L + "mlp.experts.{e}", _B + "ffn.experts"))
"""Router and routed experts, as most families name them."""

SHARED = tuple(glu(_L + "mlp.shared_experts", _B + "ffn.shared"))
"""Shared experts, which are one net in their files."""


# ---- the whole decoder -----------------------------------------------------------------------------------------------


def decoder_options(fields: Fields) -> Node:
    """Sizes, the norms' epsilon, tied embeddings; SwiGLU is the one activation, and dropout is refused."""
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
    return {
        "use": "gqa",
        "heads": heads,
        "kv_heads": fields.number("num_key_value_heads", heads),
        "head_dim": fields.number("head_dim", model["dim"] // heads),
        "norm_eps": model["norm_eps"],
        **rope_options(fields, theta),
    }


def gqa_fields(model: Node) -> dict[str, Any]:
    """The same as fields."""
    attention = model["attention"]
    return {
        "num_attention_heads": attention["heads"],
        "num_key_value_heads": attention["kv_heads"] or attention["heads"],
        "head_dim": attention["head_dim"],
        **rope_fields(attention),
    }


def window_options(fields: Fields) -> Node:
    """Qwen's sliding window, which two fields state: it counts only if ``use_sliding_window`` is true."""
    fields.demand("use_sliding_window", False, "a window in some layers alone is no option", default=False)
    for name in ("sliding_window", "max_window_layers"):
        fields.take(name, None)
    kinds = set(fields.take("layer_types", []))
    if kinds - {"full_attention"}:
        raise FormatError(f"{fields.where}: layer_types={sorted(kinds)}: only full_attention is known in this family")
    return {}


# ---- rotary positions ------------------------------------------------------------------------------------------------

_ROPE = ("rope_type", "type", "rope_theta", "factor")


def rope_options(fields: Fields, theta: float = 10000.0) -> Node:
    """``rope_theta`` and ``yarn``, from ``rope_parameters`` or the older ``rope_theta`` and ``rope_scaling``.

    ``llama3`` is YaRN whose ramp is linear in turns and whose scores keep their scale.
    """
    given, base = _rope(fields, theta)
    kind = "default" if given is None else given.take("rope_type", given.take("type", "default"))
    if given is None or kind == "default":
        if given is not None:
            given.refuse_unread()
        return {"rope_theta": base}
    factor = float(given.take("factor"))
    original = given.take("original_max_position_embeddings", fields.take("max_position_embeddings", 0))
    yarn: Node = {"factor": factor, "original": original}
    if kind == "yarn":
        yarn |= {"beta_fast": float(given.take("beta_fast", 32)), "beta_slow": float(given.take("beta_slow", 1))}
        yarn |= {"mscale": _temperature(given, factor), "truncate": given.take("truncate", True)}
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


def _temperature(given: Fields, factor: float) -> float:
    """m of ``m ln s + 1``, by which queries and keys are each multiplied."""
    both, attention = given.take("mscale_all_dim", None), given.take("attention_factor", None)
    if given.take("mscale", None) is not None or both is not None:
        raise FormatError(f"{given.where}: mscale is known in DeepSeek's families alone")
    return 0.1 if attention is None else round((float(attention) - 1) / math.log(factor), 12)


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
