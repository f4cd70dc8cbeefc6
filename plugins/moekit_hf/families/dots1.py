"""dots.llm1: Qwen3's normed heads with DeepSeek-V3's routing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from moekit_hf import shared
from moekit_hf.fields import Fields, FormatError
from moekit_hf.format import FormatSpec, Node
from moekit_hf.rules import Rule

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


class Dots1(FormatSpec):
    """dots.llm1."""

    model_type: ClassVar[str] = "dots1"
    architecture: ClassVar[str] = "Dots1ForCausalLM"
    source: ClassVar[str] = "Huo et al. 2025, dots.llm1 Technical Report (arXiv 2506.05767)"

    def spec(self, fields: Fields) -> Node:
        """The first layers are dense; every head is normed."""
        model = shared.decoder_options(fields)
        shared.refuse_window(fields)
        _refuse_late_windows(fields, model["depth"])
        fields.take("scoring_func", None)  # transformers reads none: it always scores by sigmoid here
        bias = "all" if fields.take("attention_bias", False) else "none"
        return {
            **model,
            "attention": {**shared.gqa_options(fields, model), "bias": bias, "qk_norm": True},
            "ffn": {"use": "glu", "hidden": fields.number("intermediate_size")},
            "moe": shared.biased_moe_options(fields),
        }

    def config(self, model: Node) -> dict[str, Any]:
        """The same as fields."""
        return {
            **shared.decoder_fields(model),
            **shared.gqa_fields(model),
            **shared.biased_moe_fields(model),
            "attention_bias": model["attention"]["bias"] == "all",
            "sliding_window": None,  # a missing one would be a window in the layers from the 63rd on
            "intermediate_size": model["ffn"]["hidden"],
        }

    def rules(self, model: Node) -> Sequence[Rule]:
        """One table for every size."""
        return TABLE

    def tiny(self) -> list[Mapping[str, Any]]:
        """As released, with two shared experts; with biases and two groups."""
        base: dict[str, Any] = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3}
        base |= {"num_attention_heads": 4, "num_key_value_heads": 4, "moe_intermediate_size": 12, "n_routed_experts": 8}
        base |= {"num_experts_per_tok": 3, "n_shared_experts": 2, "first_k_dense_replace": 1, "norm_topk_prob": True}
        return [{**base, "routed_scaling_factor": 2.5}, {**base, "n_group": 2, "topk_group": 1, "attention_bias": True}]


def _refuse_late_windows(fields: Fields, depth: int) -> None:
    """Unlike Qwen's, this window needs no ``use_sliding_window``: layers from ``max_window_layers`` on have it."""
    window = fields.take("sliding_window", None if "sliding_window" in fields.config else 4096)
    first = fields.number("max_window_layers", 62, least=0)
    if fields.take("layer_types", None) is None and window is not None and first < depth:
        raise FormatError(
            f"{fields.where}: sliding_window={window!r} counts in the layers from max_window_layers={first} on\n"
            "  expected sliding_window=null: layers with and without a window are not read"
        )
