"""DeepSeek-V2: latent attention, a softmax over all experts, choice within the best groups, gates as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from moekit_hf import shared
from moekit_hf.fields import Fields, FormatError
from moekit_hf.format import FormatSpec, Node
from moekit_hf.rules import Rule

TABLE = (*shared.ENDS, *shared.NORMS, *shared.DENSE, *shared.ROUTER, *shared.EXPERTS, *shared.SHARED)
GROUPS = {"greedy": False, "group_limited_greedy": True}


class DeepseekV2(FormatSpec):
    """DeepSeek-V2, V2-Lite and Coder-V2."""

    model_type: ClassVar[str] = "deepseek_v2"
    architecture: ClassVar[str] = "DeepseekV2ForCausalLM"
    source: ClassVar[str] = "DeepSeek-AI 2024, DeepSeek-V2 (arXiv 2405.04434)"

    def spec(self, fields: Fields) -> Node:
        """The first layers are dense; gates are scaled, and not renormalised.

        Raises:
            FormatError: experts are chosen by an unknown method.
        """
        fields.demand("scoring_func", "softmax", "this family scores by softmax", default="softmax")
        fields.demand("norm_topk_prob", False, "transformers never renormalises in this family", default=False)
        fields.demand("moe_layer_freq", 1, "all layers after the dense ones are mixtures", default=1)
        fields.demand("mlp_bias", False, "the dense layers of this family have no bias", default=False)
        method, hidden = fields.take("topk_method", "greedy"), fields.number("moe_intermediate_size")
        if method not in GROUPS:
            raise FormatError(f"{fields.where}: topk_method={method!r} is not known; expected {' or '.join(GROUPS)}")
        groups = fields.take("n_group", 1), fields.take("topk_group", 1)
        return {
            **shared.decoder_options(fields),
            "attention": shared.mla_options(fields),
            "ffn": {"use": "glu", "hidden": fields.number("intermediate_size")},
            "moe": {
                "at": {"first": fields.take("first_k_dense_replace", 0)},
                "router": {
                    "use": "topk",
                    "top_k": fields.number("num_experts_per_tok"),
                    "scale": fields.take("routed_scaling_factor", 1.0),
                    **({"groups": groups[0], "top_groups": groups[1]} if GROUPS[method] else {}),
                },
                "experts": {
                    "use": "glu",
                    "count": fields.either("n_routed_experts", "num_experts", "num_local_experts"),
                    "hidden": hidden,
                },
                "shared": {"use": "glu", "hidden": fields.number("n_shared_experts") * hidden},  # one net in the files
            },
        }

    def config(self, model: Node) -> dict[str, Any]:
        """The same as fields."""
        moe = model["moe"]
        router, experts = moe["router"], moe["experts"]
        return {
            **shared.decoder_fields(model),
            **shared.mla_fields(model),
            "intermediate_size": model["ffn"]["hidden"],
            "first_k_dense_replace": shared.first_of(model),
            "num_experts_per_tok": router["top_k"],
            "norm_topk_prob": False,
            "routed_scaling_factor": router["scale"],
            "topk_method": "greedy" if router["groups"] == 1 else "group_limited_greedy",
            "n_group": router["groups"],
            "topk_group": router["top_groups"] or router["groups"],
            "n_routed_experts": experts["count"],
            "moe_intermediate_size": experts["hidden"],
            "n_shared_experts": moe["shared"]["count"] * moe["shared"]["hidden"] // experts["hidden"],
        }

    def rules(self, model: Node) -> Sequence[Rule]:
        """The shared rows, and latent attention, whose rows depend on its sizes."""
        return [*TABLE, *shared.mla_rules(model)]

    def tiny(self) -> list[Mapping[str, Any]]:
        """As V2-Lite; groups, compressed queries, YaRN, as V2."""
        base: dict[str, Any] = {
            "vocab_size": 67,
            "hidden_size": 32,
            "intermediate_size": 40,
            "moe_intermediate_size": 12,
        }
        base |= {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "first_k_dense_replace": 1}
        base |= {"n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 2, "q_lora_rank": None}
        base |= {"kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 6, "v_head_dim": 10}
        yarn = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
        yarn |= {"mscale": 0.707, "mscale_all_dim": 0.707, "beta_fast": 32.0, "beta_slow": 1.0}
        # 16, as published, would amplify rounding in so small a model: both are then nearly 1e-5 from fp64.
        v2 = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 4.0}
        return [base, {**base, **v2, "q_lora_rank": 16, "rope_parameters": yarn}]
