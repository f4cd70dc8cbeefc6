"""MiniMax-M2: a norm over all heads, half of each head rotated, sigmoid affinities with a selection bias."""

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
    Rule(f"{BLOCK}.e_score_correction_bias", "blocks.{i}.ffn.balancers.bias.bias_E"),
    *shared.glu(BLOCK + ".experts.{e}", "blocks.{i}.ffn.experts", gate="w1", up="w3", down="w2"),
)


class MiniMaxM2(FormatSpec):
    """MiniMax-M2."""

    model_type: ClassVar[str] = "minimax_m2"
    architecture: ClassVar[str] = "MiniMaxM2ForCausalLM"
    source: ClassVar[str] = "MiniMax 2025, MiniMax-M2 (released configuration and code)"

    def spec(self, fields: Fields) -> Node:
        """Gates are renormalised; there is no shared expert and no dense layer."""
        model = shared.decoder_options(fields)
        fields.demand("router_jitter_noise", 0, "their jitter also multiplies the experts' input", default=0)
        fields.demand("scoring_func", "sigmoid", "this family scores by sigmoid", default="sigmoid")
        hidden, head_dim = fields.number("intermediate_size"), fields.number("head_dim", 128)
        rotary = fields.number("rotary_dim", head_dim, least=0)  # of released files, which have no share
        return {
            **model,
            "attention": {
                **shared.gqa_options(fields, model, theta=5e6, head_dim=128, partial=rotary / head_dim),
                "qk_norm": True,
                "norm_over": "all",
            },
            "ffn": {"use": "glu", "hidden": hidden},  # no layer is dense
            "moe": {
                "at": {"first": 0},
                "router": {
                    "use": "topk",
                    "score": "sigmoid",
                    "top_k": fields.number("num_experts_per_tok"),
                    "renormalize": True,
                },
                "experts": {
                    "use": "glu",
                    "count": fields.either("num_local_experts", "num_experts"),
                    "hidden": hidden,
                },
                "balancers": {"bias": {"use": "sign_bias"}},
            },
        }

    def config(self, model: Node) -> dict[str, Any]:
        """The same as fields."""
        router, experts = model["moe"]["router"], model["moe"]["experts"]
        return {
            **shared.decoder_fields(model),
            **shared.partial_fields(model),
            "intermediate_size": experts["hidden"],
            "num_experts_per_tok": router["top_k"],
            "num_local_experts": experts["count"],
        }

    def rules(self, model: Node) -> Sequence[Rule]:
        """One table for every size."""
        return TABLE

    def tiny(self) -> list[Mapping[str, Any]]:
        """Half of each head rotated, as released; all of it."""
        base = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 12, "num_hidden_layers": 2}
        base |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
        base |= {"num_local_experts": 8, "num_experts_per_tok": 3}
        half = {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5}
        return [{**base, "rope_parameters": half}, base]
