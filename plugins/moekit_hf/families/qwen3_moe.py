"""Qwen3-MoE: mixtures in all layers or some, a norm on each query and key head, gates renormalised or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from moekit_hf import shared
from moekit_hf.fields import Fields
from moekit_hf.format import FormatSpec, Node
from moekit_hf.rules import Rule

TABLE = (*shared.ENDS, *shared.NORMS, *shared.ATTENTION, *shared.DENSE, *shared.ROUTER, *shared.EXPERTS)


class Qwen3Moe(FormatSpec):
    """Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder."""

    model_type: ClassVar[str] = "qwen3_moe"
    architecture: ClassVar[str] = "Qwen3MoeForCausalLM"
    pooled_balance: ClassVar[float | None] = 0.001
    source: ClassVar[str] = "Yang et al. 2025, Qwen3 Technical Report (arXiv 2505.09388)"

    def spec(self, fields: Fields) -> Node:
        """A softmax over all experts, the K best."""
        model = shared.decoder_options(fields)
        shared.refuse_window(fields)
        bias = "all" if fields.take("attention_bias", False) else "none"
        return {
            **model,
            "attention": {**shared.gqa_options(fields, model), "bias": bias, "qk_norm": True},
            "ffn": {"use": "glu", "hidden": fields.number("intermediate_size")},
            "moe": {
                "at": shared.sparse_options(fields, model["depth"]),
                "router": {
                    "use": "topk",
                    "top_k": fields.number("num_experts_per_tok", 8),
                    "renormalize": fields.take("norm_topk_prob", False),
                },
                "experts": {
                    "use": "glu",
                    "count": fields.either("num_experts", "num_local_experts"),
                    "hidden": fields.number("moe_intermediate_size", 768),
                },
            },
        }

    def config(self, model: Node) -> dict[str, Any]:
        """The same as fields."""
        router, experts = model["moe"]["router"], model["moe"]["experts"]
        return {
            **shared.decoder_fields(model),
            **shared.gqa_fields(model),
            **shared.sparse_fields(model),
            "attention_bias": model["attention"]["bias"] == "all",
            "intermediate_size": model["ffn"]["hidden"],
            "num_experts_per_tok": router["top_k"],
            "norm_topk_prob": router["renormalize"],
            "num_experts": experts["count"],
            "moe_intermediate_size": experts["hidden"],
        }

    def rules(self, model: Node) -> Sequence[Rule]:
        """One table for every size."""
        return TABLE

    def tiny(self) -> list[Mapping[str, Any]]:
        """All layers mixtures; some dense, with biases and gates that do not sum to 1; YaRN; the ramp of Llama 3."""
        base = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 40, "moe_intermediate_size": 24}
        base |= {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
        base |= {"num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True}
        yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "rope_theta": 1e4}
        llama = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        llama |= {"original_max_position_embeddings": 64, "rope_theta": 5e4}
        return [
            base,
            {**base, "mlp_only_layers": [1], "attention_bias": True, "norm_topk_prob": False},
            {**base, "decoder_sparse_step": 2, "rope_parameters": yarn, "tie_word_embeddings": True},
            {**base, "rope_parameters": llama},
        ]
