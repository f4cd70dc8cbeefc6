"""gpt-oss: a softmax over the chosen experts, clamped experts with biases, sinks, a window in every second layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from moekit_hf import shared
from moekit_hf.fields import Fields, FormatError
from moekit_hf.format import FormatSpec, Node
from moekit_hf.rules import TRANSPOSED, Rule, interleaved_halves

WINDOW, FULL = "sliding_attention", "full_attention"
MLP, OURS = "model.layers.{i}.mlp", "blocks.{i}.ffn"


class GptOss(FormatSpec):
    """gpt-oss-20b and gpt-oss-120b, converted to bfloat16: their released experts are quantised."""

    model_type: ClassVar[str] = "gpt_oss"
    architecture: ClassVar[str] = "GptOssForCausalLM"
    pooled_balance: ClassVar[float | None] = 0.001
    source: ClassVar[str] = "OpenAI 2025, gpt-oss-120b & gpt-oss-20b Model Card (arXiv 2508.10925)"

    def spec(self, fields: Fields) -> Node:
        """``down(g · sigmoid(alpha · g) · (u + 1))``, g and u clamped; a learned logit for each head in the softmax."""
        model = shared.decoder_options(fields)
        if shared.rope_group(fields) is None:  # then transformers takes the YaRN of the released models
            fields.take("rope_parameters")
        fields.take("initial_context_length", None)  # of the training; YaRN has its own
        fields.take("experts_per_token", None)  # the same as num_experts_per_tok
        kinds = fields.listed("layer_types", str, [(WINDOW, FULL)[i % 2] for i in range(model["depth"])])
        with_window = {
            **shared.gqa_options(fields, model, theta=150000.0, head_dim=64),
            "bias": "all" if fields.take("attention_bias", True) else "none",
            "sinks": True,
            "window": fields.number("sliding_window", 128),
        }
        limit = fields.take("swiglu_limit", 7.0)
        hidden = fields.number("intermediate_size")
        return {
            **model,
            **_attention(kinds, with_window, fields.where),
            "ffn": {"use": "glu", "hidden": hidden},  # no layer is dense
            "moe": {
                "at": {"first": 0},
                "router": {
                    "use": "topk",
                    "top_k": fields.number("num_experts_per_tok"),
                    "score_over": "chosen",
                    "bias": True,
                },
                "experts": {
                    "use": "glu",
                    "count": fields.either("num_local_experts", "num_experts"),
                    "hidden": hidden,
                    "bias": True,
                    "clamp": limit,
                    "alpha": fields.take("swiglu_alpha", 1.702),
                    "up_shift": 1.0,
                },
            },
        }

    def config(self, model: Node) -> dict[str, Any]:
        """The same as fields."""
        other, experts = model["other_attention"], model["moe"]["experts"]
        full = shared.indices(other["at"], model["depth"]) if other else []
        with_window = model["attention"]["window"]
        kinds = [FULL if i in full or not with_window else WINDOW for i in range(model["depth"])]
        return {
            **shared.decoder_fields(model),
            **shared.gqa_fields(model),
            "layer_types": kinds,
            "sliding_window": with_window or 128,
            "attention_bias": model["attention"]["bias"] == "all",
            "intermediate_size": experts["hidden"],
            "num_experts_per_tok": model["moe"]["router"]["top_k"],
            "num_local_experts": experts["count"],
            "swiglu_alpha": experts["alpha"],
            "swiglu_limit": experts["clamp"],
        }

    def rules(self, model: Node) -> Sequence[Rule]:
        """Experts are one tensor in their files, ``[E, in, out]``, whose columns alternate gate and up."""
        halves = interleaved_halves(2 * model["moe"]["experts"]["hidden"])
        return [
            *shared.ENDS,
            *shared.NORMS,
            *shared.ATTENTION,
            Rule("model.layers.{i}.self_attn.sinks", "blocks.{i}.attention.b_sink_X"),
            Rule(f"{MLP}.router.weight", f"{OURS}.router.weight_ED"),
            Rule(f"{MLP}.router.bias", f"{OURS}.router.bias_E"),
            Rule(
                f"{MLP}.experts.gate_up_proj",
                f"{OURS}.experts.w_gate_up_EHD",
                view=TRANSPOSED.then(halves),
                lead="stack",
            ),
            Rule(f"{MLP}.experts.gate_up_proj_bias", f"{OURS}.experts.b_gate_up_EH", view=halves, lead="stack"),
            Rule(f"{MLP}.experts.down_proj", f"{OURS}.experts.w_down_EOH", view=TRANSPOSED, lead="stack"),
            Rule(f"{MLP}.experts.down_proj_bias", f"{OURS}.experts.b_down_EO", lead="stack"),
        ]

    def tiny(self) -> list[Mapping[str, Any]]:
        """As released, with a window shorter than the text; full attention alone, without YaRN, clamped often."""
        base = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 12, "num_hidden_layers": 3}
        base |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
        base |= {"num_local_experts": 8, "num_experts_per_tok": 3}
        plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "swiglu_limit": 0.5}
        return [{**base, "sliding_window": 6}, {**base, **plain, "layer_types": [FULL] * 3}]


def _attention(kinds: Sequence[str], with_window: Node, where: str) -> Node:
    """The attention of most layers, and of the others: those with and those without a window."""
    full = {**with_window, "window": None}
    layers = [i for i, kind in enumerate(kinds) if kind == FULL]
    if set(kinds) - {WINDOW, FULL}:
        raise FormatError(f"{where}: layer_types={sorted(set(kinds))}: expected {WINDOW} and {FULL}")
    if len(layers) in (0, len(kinds)):
        return {"attention": full if layers else with_window}
    at = shared.at_of(layers, len(kinds))
    return {"attention": with_window, "other_attention": {"at": at, "attention": full}}
