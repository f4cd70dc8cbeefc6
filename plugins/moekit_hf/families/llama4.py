"""Llama 4 without images: one routed expert a token, gated on its input, and a shared one; most layers see one chunk.

Every fourth layer attends to the whole text, without positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from moekit_hf import shared
from moekit_hf.fields import Fields, FormatError
from moekit_hf.format import FormatSpec, Node
from moekit_hf.rules import TRANSPOSED, Rule, rotary_pairs

CHUNKED, FULL = "chunked_attention", "full_attention"
TEXT_PART = (
    'write its text part: python -c "from transformers import AutoModelForCausalLM as A; '
    "A.from_pretrained(DIR, dtype='auto').save_pretrained(TEXT)\""
)
THEIRS, OURS = "model.layers.{i}.feed_forward", "blocks.{i}.ffn"


class Llama4(FormatSpec):
    """The language model of Llama 4 Scout and Maverick."""

    model_type: ClassVar[str] = "llama4_text"
    architecture: ClassVar[str] = "Llama4ForCausalLM"
    source: ClassVar[str] = "Meta 2025, Llama 4 (released code and configurations)"

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Also those that read images, so that the message says how to write their text part."""
        return config.get("model_type") in (self.model_type, "llama4")

    def spec(self, fields: Fields) -> Node:
        """``f_e(sigmoid(z_e) x) + shared(x)`` for the expert of the largest logit.

        Raises:
            FormatError: the model reads images; no layer is a mixture, or layers are of more than two kinds.
        """
        if "text_config" in fields.config:
            raise FormatError(f"{fields.where}: this model also reads images, which moekit does not\n  {TEXT_PART}")
        model = shared.decoder_options(fields)
        fields.demand("num_experts_per_tok", 1, "a gate on the input is for one expert a token", default=1)
        for name in ("cache_implementation", "router_jitter_noise", "for_llm_compressor"):
            fields.take(name, None)  # transformers' own caches and tools; its router has no jitter
        fields.stated("num_key_value_heads")
        step = fields.number("interleave_moe_layer_step", 1)
        layers = fields.listed("moe_layers", int, list(range(step - 1, model["depth"], step)))
        if not layers:
            raise FormatError(f"{fields.where}: moe_layers={layers}: a model without a mixture is not of this family")
        return {
            **model,
            **_attention(fields, model),
            "ffn": {"use": "glu", "hidden": fields.number("intermediate_size_mlp")},
            "moe": {
                "at": shared.at_of(layers, model["depth"]),
                "router": {"use": "topk", "top_k": 1, "score": "sigmoid", "score_over": "chosen"},
                "experts": {
                    "use": "glu",
                    "count": fields.number("num_local_experts"),
                    "hidden": fields.number("intermediate_size"),
                },
                "shared": {"use": "glu", "hidden": fields.number("intermediate_size")},
                "gate_on": "input",
            },
        }

    def config(self, model: Node) -> dict[str, Any]:
        """The same as fields."""
        depth, moe = model["depth"], model["moe"]
        mixtures = shared.mixture_layers(model)
        kinds = [_attention_of(model, i) for i in range(depth)]
        rotated = next((a for a in kinds if a["rotary_dim"] != 0), kinds[0])
        cooled = next((a["temperature"] for a in kinds if a["temperature"] is not None), None)
        return {
            **shared.decoder_fields(model),
            **shared.gqa_fields({**model, "attention": {**rotated, "rotary_dim": None}}),
            "attention_bias": model["attention"]["bias"] == "all",
            "moe_layers": mixtures,
            "num_experts_per_tok": moe["router"]["top_k"],
            "num_local_experts": moe["experts"]["count"],
            "intermediate_size": moe["experts"]["hidden"],
            "intermediate_size_mlp": model["ffn"]["hidden"],
            "use_qk_norm": rotated["qk_norm"],
            "no_rope_layers": [int(a["rotary_dim"] != 0) for a in kinds],
            "layer_types": [FULL if a["chunk"] is None else CHUNKED for a in kinds],
            "attention_chunk_size": next((a["chunk"] for a in kinds if a["chunk"] is not None), None),
            "attn_temperature_tuning": cooled is not None,
            **({} if cooled is None else {"attn_scale": cooled["scale"], "floor_scale": cooled["floor"]}),
        }

    def rules(self, model: Node) -> Sequence[Rule]:
        """Theirs rotates neighbouring rows of a head, ours halves; layers without rotation may have either order."""
        a = model["attention"]
        heads = {"q": a["heads"], "k": a["kv_heads"] or a["heads"]}
        turned = {name: rotary_pairs(count, 0, a["head_dim"]) for name, count in heads.items()}
        rows = [
            Rule(rule.theirs, rule.ours, view=turned[name]) if name in turned else rule
            for rule in shared.ATTENTION
            if (name := rule.ours.split(".")[-2])
        ]
        return [
            *shared.ENDS,
            *shared.NORMS,
            *rows,
            *shared.glu(THEIRS, OURS),
            *shared.glu(f"{THEIRS}.shared_expert", f"{OURS}.shared"),
            Rule(f"{THEIRS}.router.weight", f"{OURS}.router.weight_ED"),
            Rule(f"{THEIRS}.experts.gate_up_proj", f"{OURS}.experts.w_gate_up_EHD", view=TRANSPOSED, lead="stack"),
            Rule(f"{THEIRS}.experts.down_proj", f"{OURS}.experts.w_down_EOH", view=TRANSPOSED, lead="stack"),
        ]

    def tiny(self) -> list[Mapping[str, Any]]:
        """As Scout: chunks shorter than the text; as Maverick: every second layer a mixture, no norm; with biases."""
        base: dict[str, Any] = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 12}
        base |= {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
        base |= {"intermediate_size_mlp": 20}
        base |= {"num_local_experts": 6, "attention_chunk_size": 6, "floor_scale": 5, "attn_scale": 0.7}
        llama3: dict[str, Any] = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        llama3 |= {"original_max_position_embeddings": 64, "rope_theta": 5e5}
        scout = {**llama3, "high_freq_factor": 1.0, "original_max_position_embeddings": 128}
        dense_ends = {"rope_parameters": scout, "no_rope_layers": [1, 1, 1, 1], "moe_layers": [1, 2]}
        maverick = {"interleave_moe_layer_step": 2, "use_qk_norm": False, "attn_temperature_tuning": False}
        return [
            {**base, "rope_parameters": llama3},
            {**base, **maverick, "no_rope_layer_interval": 3, "attention_bias": True},
            {**base, **dense_ends, "attention_chunk_size": None},
        ]


def _attention(fields: Fields, model: Node) -> Node:
    """The attention of layers with rotary positions, and of those without."""
    depth, interval = model["depth"], fields.number("no_rope_layer_interval", 4)
    rotated = fields.listed("no_rope_layers", int, []) or [int((i + 1) % interval != 0) for i in range(depth)]
    chunk = fields.take("attention_chunk_size", None if "attention_chunk_size" in fields.config else 8192)
    usual = [CHUNKED if each and chunk is not None else FULL for each in rotated]
    kinds = list(zip((bool(each) for each in rotated), fields.listed("layer_types", str, usual), strict=False))
    if len(kinds) != depth or set(kinds) - {(True, CHUNKED), (True, FULL), (False, FULL)} or len(set(kinds)) > 2:
        raise FormatError(f"{fields.where}: no_rope_layers and layer_types={kinds}: expected two kinds of layers")
    common = shared.gqa_options(fields, model, theta=500000.0, head_dim=128)
    if common.get("yarn", {}).get("mscale") or "long_rope" in common:
        raise FormatError(f"{fields.where}: a factor of rotated queries, which are normed after that: not expressed")
    common |= {"bias": "all" if fields.take("attention_bias", False) else "none"}
    tuning = {"scale": fields.real("attn_scale", 0.1), "floor": fields.number("floor_scale", 8192)}
    tuned = fields.take("attn_temperature_tuning", True)
    normed = {"qk_norm": True, "norm_weight": False} if fields.take("use_qk_norm", True) else {}
    options = {
        (True, CHUNKED): {**common, **normed, "chunk": chunk},
        (True, FULL): {**common, **normed},
        (False, FULL): {
            **{name: value for name, value in common.items() if name not in ("yarn", "rope_theta")},
            "rotary_dim": 0,
            **({"temperature": tuning} if tuned else {}),
        },
    }
    first, *others = dict.fromkeys(kinds)
    if not others:
        return {"attention": options[first]}
    at = shared.at_of([i for i, kind in enumerate(kinds) if kind != first], depth)
    return {"attention": options[first], "other_attention": {"at": at, "attention": options[others[0]]}}


def _attention_of(model: Node, layer: int) -> Node:
    other = model["other_attention"]
    is_other = other is not None and layer in shared.indices(other["at"], model["depth"])
    attention: Node = other["attention"] if is_other else model["attention"]
    return attention
