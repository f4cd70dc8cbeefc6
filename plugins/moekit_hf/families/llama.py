"""Llama, a dense decoder: what mixtures are made from, and the simplest format to read first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from moekit_hf import shared
from moekit_hf.fields import Fields
from moekit_hf.format import FormatSpec, Node
from moekit_hf.rules import Ignored, Rule

TABLE = (*shared.ENDS, *shared.NORMS, *shared.ATTENTION, *shared.DENSE)


class Llama(FormatSpec):
    """Llama 2 to 3.3, TinyLlama, SmolLM2 and others of this form."""

    model_type: ClassVar[str] = "llama"
    architecture: ClassVar[str] = "LlamaForCausalLM"
    source: ClassVar[str] = "Touvron et al. 2023, Llama 2 (arXiv 2307.09288)"

    def spec(self, fields: Fields) -> Node:
        """Biases, if any, are on all projections of attention, and on all of the feed-forward part."""
        model = shared.decoder_options(fields)
        bias = "all" if fields.take("attention_bias", False) else "none"
        ffn = {"use": "glu", "hidden": fields.number("intermediate_size"), "bias": fields.take("mlp_bias", False)}
        return {**model, "attention": {**shared.gqa_options(fields, model), "bias": bias}, "ffn": ffn}

    def config(self, model: Node) -> dict[str, Any]:
        """The same as fields."""
        return {
            **shared.decoder_fields(model),
            **shared.gqa_fields(model),
            "attention_bias": model["attention"]["bias"] == "all",
            "intermediate_size": model["ffn"]["hidden"],
            "mlp_bias": model["ffn"]["bias"],
        }

    def rules(self, model: Node) -> Sequence[Rule]:
        """One table for every size."""
        return TABLE

    def ignored(self, model: Node) -> Sequence[Ignored]:
        """Old files hold the rotary angles, which follow from ``rope_theta``."""
        return [Ignored(r".*\.rotary_emb\.inv_freq", "angles that follow from rope_theta")]

    def tiny(self) -> list[Mapping[str, Any]]:
        """As released; with biases and fewer key heads, tied; the ramp of Llama 3; other ways to a longer context."""
        base = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
        base |= {"num_attention_heads": 4}
        biased = {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2, "tie_word_embeddings": True}
        llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        llama3 |= {"original_max_position_embeddings": 64, "rope_theta": 5e5}
        dynamic = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 1e4}
        numbers = {"short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [1.0, 2.0, 4.0, 8.0]}
        long = {"rope_type": "longrope", "original_max_position_embeddings": 16, "rope_theta": 1e4, **numbers}
        return [
            base,
            {**base, **biased},
            {**base, "rope_parameters": llama3},
            {**base, "rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4}},
            {**base, "rope_parameters": dynamic, "max_position_embeddings": 12},
            {**base, "rope_parameters": long, "max_position_embeddings": 64},
            {**base, "rope_parameters": {**long, "original_max_position_embeddings": 32, "attention_factor": 1.2}},
        ]
