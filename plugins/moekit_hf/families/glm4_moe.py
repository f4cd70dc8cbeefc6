"""GLM-4.5: grouped attention that rotates half of each head, and DeepSeek-V3's routing without its latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from moekit_hf import shared
from moekit_hf.fields import Fields
from moekit_hf.format import FormatSpec, Node
from moekit_hf.rules import Ignored, Rule

TABLE = (
    *shared.ENDS,
    *shared.NORMS,
    *shared.ATTENTION,
    *shared.DENSE,
    *shared.ROUTER,
    *shared.EXPERTS,
    *shared.SHARED,
    shared.SELECTION_BIAS,
)


class Glm4Moe(FormatSpec):
    """GLM-4.5, GLM-4.5-Air, GLM-4.6."""

    model_type: ClassVar[str] = "glm4_moe"
    architecture: ClassVar[str] = "Glm4MoeForCausalLM"
    source: ClassVar[str] = "GLM-4.5 Team 2025, GLM-4.5 (arXiv 2508.06471)"

    def spec(self, fields: Fields) -> Node:
        """Biases on queries, keys and values alone; in the large model their heads are normed."""
        model = shared.decoder_options(fields)
        fields.demand("scoring_func", "sigmoid", "this family scores by sigmoid", default="sigmoid")
        return {
            **model,
            "attention": {
                **shared.gqa_options(fields, model, partial=0.5),
                "bias": "qkv" if fields.take("attention_bias", False) else "none",
                "qk_norm": fields.take("use_qk_norm", False),
            },
            "ffn": {"use": "glu", "hidden": fields.number("intermediate_size")},
            "moe": shared.biased_moe_options(fields),
        }

    def config(self, model: Node) -> dict[str, Any]:
        """The same as fields."""
        attention = model["attention"]
        return {
            **shared.decoder_fields(model),
            **shared.partial_fields(model),
            **shared.biased_moe_fields(model),
            "attention_bias": attention["bias"] == "qkv",
            "use_qk_norm": attention["qk_norm"],
            "intermediate_size": model["ffn"]["hidden"],
        }

    def rules(self, model: Node) -> Sequence[Rule]:
        """One table for every size."""
        return TABLE

    def ignored(self, model: Node) -> Sequence[Ignored]:
        """The layer after the last one predicts a later token in training."""
        return [Ignored(rf"model\.layers\.{model['depth']}\..*", "multi-token prediction, for training alone")]

    def tiny(self) -> list[Mapping[str, Any]]:
        """As GLM-4.5; as Air, without norms; without biases, all of a head rotated, two groups."""
        base: dict[str, Any] = {
            "vocab_size": 67,
            "hidden_size": 32,
            "intermediate_size": 40,
            "moe_intermediate_size": 12,
        }
        base |= {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
        base |= {"n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 1, "first_k_dense_replace": 1}
        base |= {"attention_bias": True, "routed_scaling_factor": 2.5}
        plain: dict[str, Any] = {"attention_bias": False, "n_group": 2, "topk_group": 1}
        plain |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}}
        return [{**base, "use_qk_norm": True}, base, {**base, **plain}]
