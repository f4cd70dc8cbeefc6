"""Switch Transformers: T5's encoder-decoder, in which some layers send each token to one expert with room for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from moekit_hf import shared
from moekit_hf.fields import Fields, FormatError
from moekit_hf.format import FormatSpec, Node
from moekit_hf.rules import Ignored, Rule

UNUSED = (
    "batch_prioritized_routing", "feed_forward_proj", "initializer_factor", "is_gated_act",
    "n_positions", "num_selected_experts", "output_past", "add_router_probs", "router_ignore_padding_tokens",
    "router_type", "encoder_sparse_step", "decoder_sparse_step", "reorder_and_upcast_attn",
    "scale_attn_weights", "task_specific_params",
)  # fmt: skip
"""Fields of their files that transformers does not read, that it computes from others, or that are for generation."""


class SwitchTransformers(FormatSpec):
    """Switch-Base, Large and XXL of T5X, as converted by Hugging Face."""

    model_type: ClassVar[str] = "switch_transformers"
    architecture: ClassVar[str] = "SwitchTransformersForConditionalGeneration"
    auto: ClassVar[str] = "AutoModelForSeq2SeqLM"
    source: ClassVar[str] = "Fedus et al. 2021, Switch Transformers (arXiv 2101.03961)"

    def spec(self, fields: Fields) -> Node:
        """An expert takes ``expert_capacity`` tokens of each sequence, in their order; others pass unchanged.

        Dropout inside attention is not taken over, and padding takes no expert's room here.

        Raises:
            FormatError: no layer is a mixture.
        """
        fields.demand("quantization_config", None, "quantised weights are not read: convert them to bfloat16 first")
        fields.demand("dense_act_fn", "relu", "only relu is known in this family", default="relu")
        fields.demand("router_dtype", "float32", "routers here compute in fp32", default="float32")
        fields.demand("is_encoder_decoder", True, "only the encoder-decoder is known", default=True)
        tied = fields.take("tie_word_embeddings", True)
        for name in UNUSED:
            fields.take(name, None)
        heads, head_dim = fields.number("num_heads"), fields.number("d_kv")
        depth = fields.layers("num_layers")
        fields.stated("num_decoder_layers")
        decoder_depth = fields.layers("num_decoder_layers", depth)
        mixtures = _sparse(depth, fields.number("num_sparse_encoder_layers", least=0))
        decoder_mixtures = _sparse(decoder_depth, fields.number("num_sparse_decoder_layers", least=0))
        if not mixtures or not decoder_mixtures:
            raise FormatError(f"{fields.where}: a stack without a mixture is not of this family")
        at = shared.at_of(mixtures, depth)
        every: Node = {"first": None, "every": None, "layers": None}
        same = shared.indices({**every, **at}, decoder_depth) == decoder_mixtures
        dropout = fields.real("dropout_rate", 0.1)
        ffn = {"use": "ffn", "hidden": fields.number("d_ff"), "dropout": dropout}
        return {
            "use": "encoder_decoder",
            "vocab": fields.number("vocab_size"),
            "dim": fields.number("d_model"),
            "depth": depth,
            "decoder_depth": decoder_depth,
            "norm_eps": fields.take("layer_norm_epsilon", 1e-6),
            "tied": tied,
            "source_embedding": not tied,
            "scaled_head": tied,
            "dropout": dropout,
            "attention": {
                "use": "relative",
                "heads": heads,
                "head_dim": head_dim,
                "buckets": fields.number("relative_attention_num_buckets", 32),
                "max_distance": fields.number("relative_attention_max_distance", 128),
                "scale": 1.0,
                "shared": True,
            },
            "cross": {"heads": heads, "head_dim": head_dim, "scale": 1.0},
            "ffn": ffn,
            "moe": {
                "at": at,
                **({} if same else {"decoder_at": shared.at_of(decoder_mixtures, decoder_depth)}),
                "router": {
                    "use": "topk",
                    "top_k": 1,
                    "input_jitter": fields.take("router_jitter_noise", 0.01),
                    "bias": fields.take("router_bias", False),
                },
                "experts": {**ffn, "count": fields.number("num_experts", 8)},
                "dispatcher": {"use": "capacity", "slots": fields.number("expert_capacity", 64), "per": "sequence"},
            },
        }

    def config(self, model: Node) -> dict[str, Any]:
        """The same as fields.

        Raises:
            FormatError: the mixtures are in layers that no number of theirs stands for.
        """
        attention, moe = model["attention"], model["moe"]
        depth, decoder_depth = model["depth"], model["decoder_depth"] or model["depth"]
        return {
            "dense_act_fn": "relu",
            "router_dtype": "float32",
            "is_encoder_decoder": True,
            "tie_word_embeddings": model["tied"],
            "vocab_size": model["vocab"],
            "d_model": model["dim"],
            "num_layers": depth,
            "num_decoder_layers": decoder_depth,
            "num_sparse_encoder_layers": _count(depth, moe["at"]),
            "num_sparse_decoder_layers": _count(decoder_depth, moe["decoder_at"] or moe["at"]),
            "layer_norm_epsilon": model["norm_eps"],
            "dropout_rate": model["dropout"],
            "num_heads": attention["heads"],
            "d_kv": attention["head_dim"],
            "relative_attention_num_buckets": attention["buckets"],
            "relative_attention_max_distance": attention["max_distance"],
            "d_ff": moe["experts"]["hidden"],
            "num_experts": moe["experts"]["count"],
            "router_bias": moe["router"]["bias"],
            "router_jitter_noise": moe["router"]["input_jitter"],
            "expert_capacity": moe["dispatcher"]["slots"],
        }

    def rules(self, model: Node) -> Sequence[Rule]:
        """One table for every size; untied, each stack has an embedding of its own."""
        ends = [
            Rule("encoder.embed_tokens.weight", "source_embedding.weight"),
            Rule("decoder.embed_tokens.weight", "embedding.weight"),
            Rule("lm_head.weight", "head.weight"),
        ]
        ends = [Rule("shared.weight", "embedding.weight")] if model["tied"] else ends
        return [*ends, *_stack("encoder", 1), *_stack("decoder", 2)]

    def ignored(self, model: Node) -> Sequence[Ignored]:
        """Files may hold the one embedding several times, and one that is not read."""
        if not model["tied"]:
            return [Ignored(r"shared\.weight", "transformers reads the embedding of each stack instead")]
        return [Ignored(r"(encoder\.embed_tokens|decoder\.embed_tokens|lm_head)\.weight", "tied to shared.weight")]

    def tiny(self) -> list[Mapping[str, Any]]:
        """As released; stacks of two depths, too little room for all, biased routers; untied."""
        base: dict[str, Any] = {"vocab_size": 67, "d_model": 32, "d_ff": 24, "d_kv": 4, "num_heads": 4}
        base |= {"num_layers": 4, "num_decoder_layers": 4, "num_experts": 4, "expert_capacity": 64}
        base |= {"num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2}
        base |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}
        other = {"num_layers": 3, "num_sparse_encoder_layers": 3, "num_sparse_decoder_layers": 1}
        untied = {**base, "num_layers": 2, "num_sparse_encoder_layers": 1, "tie_word_embeddings": False}
        return [base, {**base, **other, "expert_capacity": 4, "router_bias": True}, untied]


def _stack(stack: str, last: int) -> list[Rule]:
    """The rows of one stack; its blocks end with the part numbered ``last``."""
    theirs, ours = f"{stack}.block.{{i}}.layer", f"{stack}.blocks.{{i}}"
    first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    parts = [("0.SelfAttention", "attention"), *([("1.EncDecAttention", "cross_attention")] if last == 2 else [])]
    norms = ["attention_norm", *(["cross_norm"] if last == 2 else []), "ffn_norm"]
    mlp, expert = f"{theirs}.{last}.mlp", f"{theirs}.{last}.mlp.experts.expert_{{e}}"
    return [
        *(Rule(f"{theirs}.{i}.layer_norm.weight", f"{ours}.{norm}.weight") for i, norm in enumerate(norms)),
        *(
            Rule(f"{theirs}.{part}.{t}.weight", f"{ours}.{name}.{o}.weight")
            for part, name in parts
            for t, o in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out"))
        ),
        Rule(f"{mlp}.wi.weight", f"{ours}.ffn.w_up_EHD", lead="one"),
        Rule(f"{mlp}.wo.weight", f"{ours}.ffn.w_down_EOH", lead="one"),
        Rule(f"{mlp}.router.classifier.weight", f"{ours}.ffn.router.weight_ED"),
        Rule(f"{mlp}.router.classifier.bias", f"{ours}.ffn.router.bias_E"),
        Rule(f"{expert}.wi.weight", f"{ours}.ffn.experts.w_up_EHD", lead="each"),
        Rule(f"{expert}.wo.weight", f"{ours}.ffn.experts.w_down_EOH", lead="each"),
        Rule(first, f"{stack}.positions.bias.weight"),
        Rule(f"{stack}.final_layer_norm.weight", f"{stack}.norm.weight"),
    ]


def _sparse(depth: int, count: int) -> list[int]:
    """The mixtures of a stack, as transformers places them: the second of every ``depth // count`` layers."""
    step = depth // count if count > 0 else depth
    return [i for i in range(depth) if step == 1 or (step > 1 and i % step == 1)]


def _count(depth: int, at: Node) -> int:
    """The ``count`` that places mixtures so."""
    wanted = shared.indices(at, depth)
    found = next((count for count in range(1, depth + 1) if _sparse(depth, count) == wanted), None)
    if found is None:
        raise FormatError(f"mixtures at {wanted} of {depth}: this family has the second of every n layers")
    return found
