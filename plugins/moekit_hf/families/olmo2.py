"""OLMo 2, a dense decoder whose norms come after attention and feed-forward part, and one norm over all query heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from moekit_hf import shared
from moekit_hf.fields import Fields
from moekit_hf.format import FormatSpec, Node
from moekit_hf.rules import Rule

TABLE = (
    *shared.ENDS,
    Rule("model.layers.{i}.post_attention_layernorm.weight", "blocks.{i}.attention_norm.weight"),
    Rule("model.layers.{i}.post_feedforward_layernorm.weight", "blocks.{i}.ffn_norm.weight"),
    *shared.ATTENTION,
    *shared.DENSE,
)


class Olmo2(FormatSpec):
    """OLMo 2 of 1B to 32B."""

    model_type: ClassVar[str] = "olmo2"
    architecture: ClassVar[str] = "Olmo2ForCausalLM"
    source: ClassVar[str] = "OLMo Team 2024, 2 OLMo 2 Furious (arXiv 2501.00656)"

    def spec(self, fields: Fields) -> Node:
        """Queries and keys are normed before they are split into heads."""
        model = shared.decoder_options(fields)
        bias = "all" if fields.take("attention_bias", False) else "none"
        return {
            **model,
            "norm_at": "output",
            "attention": {
                **shared.gqa_options(fields, model),
                "bias": bias,
                "qk_norm": True,
                "norm_over": "all",
            },
            "ffn": {"use": "glu", "hidden": fields.number("intermediate_size")},
        }

    def config(self, model: Node) -> dict[str, Any]:
        """The same as fields."""
        return {
            **shared.decoder_fields(model),
            **shared.gqa_fields(model),
            "attention_bias": model["attention"]["bias"] == "all",
            "intermediate_size": model["ffn"]["hidden"],
        }

    def rules(self, model: Node) -> Sequence[Rule]:
        """One table for every size."""
        return TABLE

    def tiny(self) -> list[Mapping[str, Any]]:
        """As released; fewer key heads, with biases."""
        base = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
        base |= {"num_attention_heads": 4}
        return [base, {**base, "num_key_value_heads": 2, "attention_bias": True}]
