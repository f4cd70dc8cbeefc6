"""Qwen2-MoE: biases on queries, keys and values, and a shared expert with a gate of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from moekit_hf import shared
from moekit_hf.fields import Fields
from moekit_hf.format import FormatSpec, Node
from moekit_hf.rules import Rule

BLOCK = "model.layers.{i}.mlp"
TABLE = (
    *shared.ENDS,
    *shared.NORMS,
    *shared.ATTENTION,
    *shared.DENSE,
    *shared.ROUTER,
    *shared.EXPERTS,
    *shared.glu(f"{BLOCK}.shared_expert", "blocks.{i}.ffn.shared"),
    Rule(f"{BLOCK}.shared_expert_gate.weight", "blocks.{i}.ffn.shared.w_output_EXD", lead="one"),
)


class Qwen2Moe(FormatSpec):
    """Qwen1.5-MoE-A2.7B and Qwen2-57B-A14B."""

    model_type: ClassVar[str] = "qwen2_moe"
    architecture: ClassVar[str] = "Qwen2MoeForCausalLM"
    pooled_balance: ClassVar[float | None] = 0.001
    source: ClassVar[str] = "Yang et al. 2024, Qwen2 Technical Report (arXiv 2407.10671)"

    def spec(self, fields: Fields) -> Node:
        """A softmax over all experts, the K best; the shared expert's output times ``sigmoid(w·x)``."""
        model = shared.decoder_options(fields)
        shared.refuse_window(fields)
        return {
            **model,
            "attention": {
                **shared.gqa_options(fields, model),
                "bias": "qkv" if fields.take("qkv_bias", True) else "none",
            },
            "ffn": {"use": "glu", "hidden": fields.number("intermediate_size")},
            "moe": {
                "at": shared.sparse_options(fields, model["depth"]),
                "router": {
                    "use": "topk",
                    "top_k": fields.number("num_experts_per_tok"),
                    "renormalize": fields.take("norm_topk_prob", False),
                },
                "experts": {
                    "use": "glu",
                    "count": fields.either("num_experts", "num_local_experts"),
                    "hidden": fields.number("moe_intermediate_size"),
                },
                "shared": {
                    "use": "glu",
                    "hidden": fields.number("shared_expert_intermediate_size"),
                    "output_gate": True,
                },
            },
        }

    def config(self, model: Node) -> dict[str, Any]:
        """The same as fields; the head's width is always that of the tokens divided by the heads."""
        moe = model["moe"]
        fields = {**shared.decoder_fields(model), **shared.gqa_fields(model), **shared.sparse_fields(model)}
        del fields["head_dim"]
        return {
            **fields,
            "qkv_bias": model["attention"]["bias"] == "qkv",
            "intermediate_size": model["ffn"]["hidden"],
            "num_experts_per_tok": moe["router"]["top_k"],
            "norm_topk_prob": moe["router"]["renormalize"],
            "num_experts": moe["experts"]["count"],
            "moe_intermediate_size": moe["experts"]["hidden"],
            "shared_expert_intermediate_size": moe["shared"]["hidden"],
        }

    def rules(self, model: Node) -> Sequence[Rule]:
        """One table for every size."""
        return TABLE

    def tiny(self) -> list[Mapping[str, Any]]:
        """As released; without biases, a dense layer, renormalised."""
        base = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 40, "moe_intermediate_size": 12}
        base |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 8}
        base |= {"num_experts_per_tok": 3, "shared_expert_intermediate_size": 20}
        return [base, {**base, "qkv_bias": False, "mlp_only_layers": [0], "norm_topk_prob": True}]
