"""Phi-3.5-MoE: every layer a mixture, two experts by SparseMixer; LayerNorm, and biases in attention and head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from moekit_hf import shared
from moekit_hf.fields import Fields
from moekit_hf.format import FormatSpec, Node
from moekit_hf.rules import Rule

BLOCK = "model.layers.{i}.block_sparse_moe"
TABLE = (
    *shared.ENDS,
    Rule("model.norm.bias", "norm.bias"),
    Rule("lm_head.bias", "head.bias"),
    *shared.NORMS,
    *(Rule(r.theirs.replace("weight", "bias"), r.ours.replace("weight", "bias")) for r in shared.NORMS),
    *shared.ATTENTION,
    Rule(f"{BLOCK}.gate.weight", "blocks.{i}.ffn.router.weight_ED"),
    *shared.glu(BLOCK + ".experts.{e}", "blocks.{i}.ffn.experts", gate="w1", up="w3", down="w2"),
)


class Phimoe(FormatSpec):
    """Phi-3.5-MoE and Phi-mini-MoE."""

    model_type: ClassVar[str] = "phimoe"
    architecture: ClassVar[str] = "PhimoeForCausalLM"
    source: ClassVar[str] = "Abdin et al. 2024, Phi-3 Technical Report (arXiv 2404.14219); Liu et al. 2024, GRIN"

    def spec(self, fields: Fields) -> Node:
        """``input_jitter_noise`` multiplies the block's input in training alone, and is not taken over.

        In a text longer than the original context, transformers 5.24 still divides by ``short_factor``, unlike the
        authors' code and earlier versions: here, as by the authors, ``long_factor`` counts then.
        """
        model = shared.decoder_options(fields)
        fields.take("input_jitter_noise", 0)
        fields.demand("num_experts_per_tok", 2, "transformers chooses two, whatever it says", default=2)
        fields.stated("num_key_value_heads")
        hidden = fields.number("intermediate_size")
        rope = shared.rope_group(fields)
        scales = rope is not None and "short_mscale" in rope.config
        return {
            **model,
            "norm": "layer",
            "head_bias": fields.take("lm_head_bias", False),
            "attention": {
                **shared.gqa_options(fields, model, theta=1e6, scales=scales),
                "bias": "all" if fields.take("attention_bias", False) else "none",
                "window": fields.take("sliding_window", None),
            },
            "ffn": {"use": "glu", "hidden": hidden},  # no layer is dense
            "moe": {
                "at": {"first": 0},
                "router": {
                    "use": "sparse_mixer",
                    "top_k": 2,
                    "jitter": fields.take("router_jitter_noise", 0.01),
                },
                "experts": {"use": "glu", "count": fields.number("num_local_experts", 16), "hidden": hidden},
            },
        }

    def config(self, model: Node) -> dict[str, Any]:
        """The same as fields; the head's width is always that of the tokens divided by the heads."""
        router, experts = model["moe"]["router"], model["moe"]["experts"]
        fields = {**shared.decoder_fields(model), **shared.gqa_fields(model)}
        del fields["head_dim"]
        return {
            **fields,
            "lm_head_bias": model["head_bias"],
            "attention_bias": model["attention"]["bias"] == "all",
            "sliding_window": model["attention"]["window"],
            "intermediate_size": experts["hidden"],
            "num_experts_per_tok": router["top_k"],
            "router_jitter_noise": router["jitter"],
            "num_local_experts": experts["count"],
        }

    def rules(self, model: Node) -> Sequence[Rule]:
        """One table for every size."""
        return TABLE

    def tiny(self) -> list[Mapping[str, Any]]:
        """As released, in the original context; the longer one's scale; a window, experts far apart, no biases."""
        base = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2}
        base |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 6}
        biased = {"attention_bias": True, "lm_head_bias": True, "router_jitter_noise": 0.3}
        numbers = [1.0, 1.1, 1.3, 1.7]
        rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": numbers, "long_factor": numbers}
        rope |= {"short_mscale": 1.2, "long_mscale": 1.5, "original_max_position_embeddings": 16}
        near = {**rope, "long_factor": [1.0, 2.0, 4.0, 8.0], "original_max_position_embeddings": 96}
        return [
            {**base, **biased, "rope_parameters": near, "max_position_embeddings": 384},
            {**base, **biased, "rope_parameters": rope, "max_position_embeddings": 64},
            {**base, "sliding_window": 6},
        ]
