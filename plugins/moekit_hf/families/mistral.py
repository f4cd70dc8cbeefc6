"""Mistral, a dense decoder: Llama with a window, which a missing field also means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from moekit_hf import shared
from moekit_hf.fields import Fields
from moekit_hf.format import FormatSpec, Node
from moekit_hf.rules import Rule

TABLE = (*shared.ENDS, *shared.NORMS, *shared.ATTENTION, *shared.DENSE)


class Mistral(FormatSpec):
    """Mistral 7B, Nemo, Small."""

    model_type: ClassVar[str] = "mistral"
    architecture: ClassVar[str] = "MistralForCausalLM"
    source: ClassVar[str] = "Jiang et al. 2023, Mistral 7B (arXiv 2310.06825)"

    def spec(self, fields: Fields) -> Node:
        """All layers have the same window, or none."""
        model = shared.decoder_options(fields)
        attention = {**shared.gqa_options(fields, model), "window": fields.stated("sliding_window")}
        return {**model, "attention": attention, "ffn": {"use": "glu", "hidden": fields.number("intermediate_size")}}

    def config(self, model: Node) -> dict[str, Any]:
        """The same as fields."""
        return {
            **shared.decoder_fields(model),
            **shared.gqa_fields(model),
            "sliding_window": model["attention"]["window"],
            "intermediate_size": model["ffn"]["hidden"],
        }

    def rules(self, model: Node) -> Sequence[Rule]:
        """One table for every size."""
        return TABLE

    def tiny(self) -> list[Mapping[str, Any]]:
        """With a window shorter than the text; without one, heads wider than a share of the tokens."""
        base = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
        base |= {"num_attention_heads": 4, "num_key_value_heads": 2}
        return [{**base, "sliding_window": 6}, {**base, "sliding_window": None, "head_dim": 12}]
