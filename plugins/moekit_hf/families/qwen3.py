"""Qwen3, a dense decoder with a norm on each query and key head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from moekit_hf import shared
from moekit_hf.fields import Fields
from moekit_hf.format import FormatSpec, Node
from moekit_hf.rules import Rule

TABLE = (*shared.ENDS, *shared.NORMS, *shared.ATTENTION, *shared.DENSE)


class Qwen3(FormatSpec):
    """Qwen3-0.6B to Qwen3-32B."""

    model_type: ClassVar[str] = "qwen3"
    architecture: ClassVar[str] = "Qwen3ForCausalLM"
    source: ClassVar[str] = "Yang et al. 2025, Qwen3 Technical Report (arXiv 2505.09388)"

    def spec(self, fields: Fields) -> Node:
        """Llama with normed heads."""
        model = shared.decoder_options(fields)
        shared.refuse_window(fields)
        bias = "all" if fields.take("attention_bias", False) else "none"
        attention = {**shared.gqa_options(fields, model, head_dim=128), "bias": bias, "qk_norm": True}
        return {**model, "attention": attention, "ffn": {"use": "glu", "hidden": fields.number("intermediate_size")}}

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
        """As released; with biases, tied."""
        base = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
        base |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
        return [base, {**base, "attention_bias": True, "tie_word_embeddings": True}]
