"""DeepSeek-V3: latent attention, sigmoid affinities with a selection bias, groups of experts, a shared expert."""

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
    *shared.DENSE,
    *shared.ROUTER,
    *shared.EXPERTS,
    *shared.SHARED,
    shared.SELECTION_BIAS,
)


class DeepseekV3(FormatSpec):
    """DeepSeek-V3 and R1, Kimi-K2, Moonlight; in bfloat16, since quantised weights are not read."""

    model_type: ClassVar[str] = "deepseek_v3"
    architecture: ClassVar[str] = "DeepseekV3ForCausalLM"
    source: ClassVar[str] = "DeepSeek-AI 2024, DeepSeek-V3 Technical Report (arXiv 2412.19437)"

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Kimi-K2 has a name of its own for the same model."""
        return config.get("model_type") in (self.model_type, "kimi_k2")

    def spec(self, fields: Fields) -> Node:
        """The first layers are dense; gates are renormalised, then scaled."""
        fields.demand("scoring_func", "sigmoid", "this family scores by sigmoid", default="sigmoid")
        fields.demand("topk_method", "noaux_tc", "this family chooses with a selection bias", default="noaux_tc")
        fields.demand("moe_layer_freq", 1, "all layers after the dense ones are mixtures", default=1)
        fields.demand("rope_interleave", True, "the table takes rotary rows in neighbouring pairs", default=True)
        return {
            **shared.decoder_options(fields),
            "attention": shared.mla_options(fields),
            "ffn": {"use": "glu", "hidden": fields.number("intermediate_size")},
            "moe": shared.biased_moe_options(fields),
        }

    def config(self, model: Node) -> dict[str, Any]:
        """The same as fields."""
        return {
            **shared.decoder_fields(model),
            **shared.mla_fields(model),
            **shared.biased_moe_fields(model),
            "intermediate_size": model["ffn"]["hidden"],
        }

    def rules(self, model: Node) -> Sequence[Rule]:
        """The shared rows, and latent attention, whose rows depend on its sizes."""
        return [*TABLE, *shared.mla_rules(model)]

    def ignored(self, model: Node) -> Sequence[Ignored]:
        """The layer after the last one predicts a later token in training."""
        return [Ignored(rf"model\.layers\.{model['depth']}\..*", "multi-token prediction, for training alone")]

    def tiny(self) -> list[Mapping[str, Any]]:
        """Groups, compressed queries, YaRN; one group and plain queries, as in Moonlight."""
        base = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 40, "moe_intermediate_size": 12}
        base |= {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "first_k_dense_replace": 1}
        base |= {"n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "n_shared_experts": 2}
        base |= {"q_lora_rank": 16, "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 6, "v_head_dim": 10}
        yarn = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
        yarn |= {"mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32.0, "beta_slow": 1.0}
        moonlight = {"n_group": 1, "topk_group": 1, "q_lora_rank": None, "routed_scaling_factor": 2.446}
        return [base, {**base, "rope_parameters": yarn}, {**base, **moonlight}]
