"""Grouped-query and latent attention. Torch-free."""

from __future__ import annotations

from typing import Any

from moekit_hf.fields import Fields, FormatError
from moekit_hf.format import Node
from moekit_hf.rules import Rule, rotary_pairs
from moekit_hf.shared.rope import mla_temperature, rope_fields, rope_group, rope_options


def gqa_options(
    fields: Fields,
    model: Node,
    *,
    theta: float = 10000.0,
    head_dim: int = 0,
    partial: float | None = None,
    scales: bool = False,
) -> Node:
    """Grouped-query attention of a decoder.

    ``theta``, ``head_dim`` and ``partial`` are what missing fields mean in a family: ``rope_theta``, ``head_dim`` and
    ``partial_rotary_factor``; without ``partial``, the family rotates all of each head. ``scales`` is as of
    ``rope_options``.

    Raises:
        FormatError: YaRN scales a part of each head alone, or only a part is rotated where none can be.
    """
    heads = fields.number("num_attention_heads")
    missing = 0 if "head_dim" in fields.config else head_dim
    head_dim = fields.number("head_dim", missing or model["dim"] // heads)
    rope = rope_options(fields, theta, partial=partial is not None, scales=scales)
    part = {} if partial is None else _partial(fields, head_dim, partial)
    if part and rope.get("yarn", {}).get("mscale"):
        raise FormatError(f"{fields.where}: YaRN in a part of each head: its factor would be of that part alone here")
    return {
        "use": "gqa",
        "heads": heads,
        "kv_heads": fields.number("num_key_value_heads", heads),
        "head_dim": head_dim,
        "norm_eps": model["norm_eps"],
        **rope,
        **part,
    }


def _partial(fields: Fields, head_dim: int, missing: float) -> Node:
    """The share of a head that is rotated, ``partial_rotary_factor``: of the rotary fields, or else of the file."""
    null = 1.0  # to transformers, unlike a missing one
    share = fields.real("partial_rotary_factor", null if "partial_rotary_factor" in fields.config else missing)
    given = rope_group(fields)
    rotary = int(head_dim * (share if given is None else given.real("partial_rotary_factor", share)))
    return {} if rotary == head_dim else {"rotary_dim": rotary}


def partial_fields(model: Node) -> dict[str, Any]:
    """``gqa_fields`` of a family that rotates a part of each head."""
    fields, attention = gqa_fields(model), model["attention"]
    rotary = attention["head_dim"] if attention["rotary_dim"] is None else attention["rotary_dim"]
    fields["rope_parameters"]["partial_rotary_factor"] = rotary / attention["head_dim"]
    return fields


def gqa_fields(model: Node) -> dict[str, Any]:
    """The same as fields, of a family that rotates all of each head."""
    attention = model["attention"]
    return {
        "num_attention_heads": attention["heads"],
        "num_key_value_heads": attention["kv_heads"] or attention["heads"],
        "head_dim": attention["head_dim"],
        **rope_fields(attention),
    }


def refuse_window(fields: Fields) -> None:
    """Qwen's sliding window, which counts only if ``use_sliding_window`` is true: no released model has it.

    Raises:
        FormatError: the model has one.
    """
    fields.demand("use_sliding_window", False, "layers with and without a window are not read", default=False)
    for name in ("sliding_window", "max_window_layers"):
        fields.take(name, None)
    kinds = set(fields.listed("layer_types", str, []))
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
        "query_rank": fields.stated("q_lora_rank"),
        "kv_rank": fields.number("kv_lora_rank"),
        "nope_dim": nope,
        "rope_dim": rope,
        "value_dim": fields.number("v_head_dim"),
        "norm_eps": 1e-6,
        **_yarn_alone(rope_options(fields, temperature=mla_temperature), fields.where),
    }


def _yarn_alone(rope: Node, where: str) -> Node:
    if other := {"stretch", "long_rope"} & set(rope):
        raise FormatError(f"{where}: latent attention has no {other.pop()} here: expected rope_type default or yarn")
    return rope


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
    theirs, ours = "model.layers.{i}.self_attn.", "blocks.{i}.attention."
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
