"""Rows that the tables of several families have. Torch-free."""

from __future__ import annotations

from typing import Any

from moekit_hf.rules import Rule

_L, _B = "model.layers.{i}.", "blocks.{i}."

ENDS = (
    Rule("model.embed_tokens.weight", "embedding.weight"),
    Rule("model.norm.weight", "norm.weight"),
    Rule("lm_head.weight", "head.weight"),
)
"""Embedding, last norm and head; a tied model has no head of its own."""

NORMS = (
    Rule(_L + "input_layernorm.weight", _B + "attention_norm.weight"),
    Rule(_L + "post_attention_layernorm.weight", _B + "ffn_norm.weight"),
)
"""The norm before attention, and the one before the feed-forward part."""

ATTENTION = (
    *(
        Rule(f"{_L}self_attn.{theirs}_proj.{what}", f"{_B}attention.{ours}.{what}")
        for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out"))
        for what in ("weight", "bias")
    ),
    Rule(_L + "self_attn.q_norm.weight", _B + "attention.q_norm.weight"),
    Rule(_L + "self_attn.k_norm.weight", _B + "attention.k_norm.weight"),
)
"""Grouped-query attention; both rotate pairs (i, i + R/2), so that rows have one order."""


def glu(theirs: str, ours: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> list[Rule]:
    """A gated feed-forward net, by expert if ``theirs`` names one: our gate and up are halves of one matrix."""
    lead: Any = "each" if "{e}" in theirs else "one"
    return [
        Rule(f"{theirs}.{gate}.weight", f"{ours}.w_gate_up_EHD", half=0, lead=lead),
        Rule(f"{theirs}.{up}.weight", f"{ours}.w_gate_up_EHD", half=1, lead=lead),
        Rule(f"{theirs}.{down}.weight", f"{ours}.w_down_EOH", lead=lead),
        Rule(f"{theirs}.{gate}.bias", f"{ours}.b_gate_up_EH", half=0, lead=lead),
        Rule(f"{theirs}.{up}.bias", f"{ours}.b_gate_up_EH", half=1, lead=lead),
        Rule(f"{theirs}.{down}.bias", f"{ours}.b_down_EO", lead=lead),
    ]


DENSE = tuple(glu(_L + "mlp", _B + "ffn"))
"""The feed-forward part of a dense layer."""

ROUTER = (Rule(_L + "mlp.gate.weight", _B + "ffn.router.weight_ED"),)
EXPERTS = tuple(glu(_L + "mlp.experts.{e}", _B + "ffn.experts"))
"""Router and routed experts, as most families name them."""

SHARED = tuple(glu(_L + "mlp.shared_experts", _B + "ffn.shared"))
"""Shared experts, which are one net in their files."""


SELECTION_BIAS = Rule(_L + "mlp.gate.e_score_correction_bias", _B + "ffn.balancers.bias.bias_E")
"""The bias that DeepSeek-V3 adds to affinities to choose experts."""
