"""Mixtral: every layer a mixture of SwiGLU experts; a softmax over the two best logits."""

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
    *shared.NORMS,
    *shared.ATTENTION,
    Rule(f"{BLOCK}.gate.weight", "blocks.{i}.ffn.router.weight_ED"),
    *shared.glu(BLOCK + ".experts.{e}", "blocks.{i}.ffn.experts", gate="w1", up="w3", down="w2"),
)


class Mixtral(FormatSpec):
    """Mixtral 8x7B and 8x22B."""

    model_type: ClassVar[str] = "mixtral"
    architecture: ClassVar[str] = "MixtralForCausalLM"
    pooled_balance: ClassVar[float | None] = 0.001
    source: ClassVar[str] = "Jiang et al. 2024, Mixtral of Experts (arXiv 2401.04088)"

    def spec(self, fields: Fields) -> Node:
        """Softmax over all experts, the two best, renormalised: the same as a softmax over these two."""
        model = shared.decoder_options(fields)
        fields.demand("router_jitter_noise", 0, "their jitter also multiplies the experts' input", default=0)
        hidden = fields.number("intermediate_size")
        return {
            **model,
            "attention": {
                **shared.gqa_options(fields, model, theta=1e6),
                "window": fields.take("sliding_window", None),
            },
            "ffn": {"use": "glu", "hidden": hidden},  # no layer is dense
            "moe": {
                "at": {"first": 0},
                "router": {
                    "use": "topk",
                    "top_k": fields.number("num_experts_per_tok", 2),
                    "renormalize": True,
                },
                "experts": {"use": "glu", "count": fields.number("num_local_experts", 8), "hidden": hidden},
            },
        }

    def config(self, model: Node) -> dict[str, Any]:
        """The same as fields."""
        router, experts = model["moe"]["router"], model["moe"]["experts"]
        return {
            **shared.decoder_fields(model),
            **shared.gqa_fields(model),
            "sliding_window": model["attention"]["window"],
            "intermediate_size": experts["hidden"],
            "num_experts_per_tok": router["top_k"],
            "num_local_experts": experts["count"],
        }

    def rules(self, model: Node) -> Sequence[Rule]:
        """One table for every size."""
        return TABLE

    def tiny(self) -> list[Mapping[str, Any]]:
        """Few key heads and more; a window shorter than the text; tied."""
        base = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2}
        base |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 6}
        return [base, {**base, "sliding_window": 6, "head_dim": 12}, {**base, "tie_word_embeddings": True}]
