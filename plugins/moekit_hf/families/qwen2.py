"""Qwen2 and Qwen2.5, a dense decoder with biases on queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from moekit_hf import shared
from moekit_hf.fields import Fields
from moekit_hf.format import FormatSpec, Node
from moekit_hf.rules import Rule

TABLE = (*shared.ENDS, *shared.NORMS, *shared.ATTENTION, *shared.DENSE)


class Qwen2(FormatSpec):
    """Qwen1.5, Qwen2 and Qwen2.5, 0.5B to 110B."""

    model_type: ClassVar[str] = "qwen2"
    architecture: ClassVar[str] = "Qwen2ForCausalLM"
    source: ClassVar[str] = "Yang et al. 2024, Qwen2 Technical Report (arXiv 2407.10671)"

    def spec(self, fields: Fields) -> Node:
        """The biases are always there; a window, which no released model uses, is refused."""
        model = shared.decoder_options(fields)
        shared.refuse_window(fields)
        attention = {**shared.gqa_options(fields, model), "bias": "qkv"}
        return {**model, "attention": attention, "ffn": {"use": "glu", "hidden": fields.number("intermediate_size")}}

    def config(self, model: Node) -> dict[str, Any]:
        """The same as fields."""
        return {
            **shared.decoder_fields(model),
            **shared.gqa_fields(model),
            "intermediate_size": model["ffn"]["hidden"],
        }

    def rules(self, model: Node) -> Sequence[Rule]:
        """One table for every size."""
        return TABLE

    def tiny(self) -> list[Mapping[str, Any]]:
        """As released; tied, as the small ones."""
        base = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
        base |= {"num_attention_heads": 4, "num_key_value_heads": 2}
        return [base, {**base, "tie_word_embeddings": True}]
