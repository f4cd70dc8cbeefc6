"""OLMoE: every layer a mixture of small experts, gates that do not sum to 1, one norm over all query heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from moekit_hf import shared
from moekit_hf.fields import Fields
from moekit_hf.format import FormatSpec, Node
from moekit_hf.rules import Rule

TABLE = (*shared.ENDS, *shared.NORMS, *shared.ATTENTION, *shared.ROUTER, *shared.EXPERTS)


class Olmoe(FormatSpec):
    """OLMoE-1B-7B."""

    model_type: ClassVar[str] = "olmoe"
    architecture: ClassVar[str] = "OlmoeForCausalLM"
    pooled_balance: ClassVar[float | None] = 0.01
    source: ClassVar[str] = "Muennighoff et al. 2024, OLMoE (arXiv 2409.02060)"

    def spec(self, fields: Fields) -> Node:
        """A softmax over all experts, the K best; queries and keys are normed before they are split into heads."""
        model = shared.decoder_options(fields)
        fields.demand("attention_bias", False, "a bias before the norm over all heads is not tested", default=False)
        hidden = fields.number("intermediate_size")
        return {
            **model,
            "attention": {
                **shared.gqa_options(fields, model),
                "qk_norm": True,
                "norm_over": "all",
                "clip": fields.take("clip_qkv", None),
            },
            "ffn": {"use": "glu", "hidden": hidden},  # no layer is dense
            "moe": {
                "at": {"first": 0},
                "router": {
                    "use": "topk",
                    "top_k": fields.number("num_experts_per_tok", 8),
                    "renormalize": fields.take("norm_topk_prob", False),
                },
                "experts": {"use": "glu", "count": fields.either("num_experts", "num_local_experts"), "hidden": hidden},
            },
        }

    def config(self, model: Node) -> dict[str, Any]:
        """The same as fields; the head's width is always that of the tokens divided by the heads."""
        router, experts = model["moe"]["router"], model["moe"]["experts"]
        fields = {**shared.decoder_fields(model), **shared.gqa_fields(model)}
        del fields["head_dim"]
        return {
            **fields,
            "clip_qkv": model["attention"]["clip"],
            "intermediate_size": experts["hidden"],
            "num_experts_per_tok": router["top_k"],
            "norm_topk_prob": router["renormalize"],
            "num_experts": experts["count"],
        }

    def rules(self, model: Node) -> Sequence[Rule]:
        """One table for every size."""
        return TABLE

    def tiny(self) -> list[Mapping[str, Any]]:
        """As released; fewer key heads, clipped, renormalised."""
        base = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2}
        base |= {"num_attention_heads": 4, "num_experts": 8, "num_experts_per_tok": 3}
        return [base, {**base, "num_key_value_heads": 2, "clip_qkv": 0.7, "norm_topk_prob": True}]
