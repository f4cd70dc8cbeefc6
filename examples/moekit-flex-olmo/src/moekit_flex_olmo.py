"""FlexOlmo (Shi et al. 2025, arXiv 2507.07024) for moekit: a family of Hugging Face models in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from moekit import Component, hookimpl
from moekit_hf import Fields, FormatSpec, Rule, as_it_is, shared

MOEKIT_API = 2

TABLE = (
    *shared.ENDS,
    Rule("model.layers.{i}.post_attention_layernorm.weight", "blocks.{i}.attention_norm.weight"),
    Rule("model.layers.{i}.post_feedforward_layernorm.weight", "blocks.{i}.ffn_norm.weight"),
    *shared.ATTENTION,
    *shared.ROUTER,
    *shared.EXPERTS,
)


class FlexOlmo(FormatSpec):
    """OLMo 2 whose every layer is a mixture of experts that were trained apart."""

    model_type: ClassVar[str] = "flex_olmo"
    architecture: ClassVar[str] = "FlexOlmoForCausalLM"
    source: ClassVar[str] = "Shi et al. 2025, FlexOlmo (arXiv 2507.07024)"

    def spec(self, fields: Fields) -> dict[str, Any]:
        """Norms at the output, one norm over all query heads, a softmax over all experts."""
        model, hidden = shared.decoder_options(fields), fields.number("intermediate_size")
        attention = shared.gqa_options(fields, model, theta=500000.0)
        bias = "all" if fields.take("attention_bias", False) else "none"
        router = {"use": "topk", "top_k": fields.number("num_experts_per_tok")}
        return {
            **model,
            "norm_at": "output",
            "attention": {**attention, "bias": bias, "qk_norm": True, "norm_over": "all"},
            "ffn": {"use": "glu", "hidden": hidden},  # no layer is dense
            "moe": {
                "at": {"first": 0},
                "router": {**router, "renormalize": fields.take("norm_topk_prob", False)},
                "experts": {"use": "glu", "count": fields.either("num_experts", "num_local_experts"), "hidden": hidden},
            },
        }

    def config(self, model: dict[str, Any]) -> dict[str, Any]:
        """The same as fields."""
        router, experts = model["moe"]["router"], model["moe"]["experts"]
        return {
            **shared.decoder_fields(model),
            **shared.gqa_fields(model),
            "attention_bias": model["attention"]["bias"] == "all",
            "intermediate_size": experts["hidden"],
            "num_experts": experts["count"],
            "num_experts_per_tok": router["top_k"],
            "norm_topk_prob": router["renormalize"],
        }

    def rules(self, model: dict[str, Any]) -> Sequence[Rule]:
        """One table for every size."""
        return TABLE

    def tiny(self) -> list[Mapping[str, Any]]:
        """As released; fewer key heads, biases, renormalised."""
        base = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2}
        base |= {"num_attention_heads": 4, "num_experts": 7, "num_experts_per_tok": 5}
        return [base, {**base, "num_key_value_heads": 2, "attention_bias": True, "norm_topk_prob": True}]


@hookimpl
def moekit_components() -> list[Component]:
    """The family."""
    return [Component(name="flex-olmo", spec=FlexOlmo, target=as_it_is, summary="FlexOlmo-7x7B")]
