"""The whole decoder, which of its layers are mixtures, and DeepSeek-V3's mixture, which others took. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moekit_hf.fields import Fields, FormatError
from moekit_hf.format import Node


def decoder_options(fields: Fields) -> Node:
    """Sizes, the norms' epsilon, tied embeddings; SwiGLU is the one activation, and dropout is refused."""
    fields.demand("quantization_config", None, "quantised weights are not read: convert them to bfloat16 first")
    fields.demand("hidden_act", "silu", "only silu is known in this family", default="silu")
    fields.demand("attention_dropout", 0, "attention here has no dropout", default=0)
    return {
        "use": "decoder",
        "vocab": fields.number("vocab_size"),
        "dim": fields.number("hidden_size"),
        "depth": fields.layers("num_hidden_layers"),
        "norm_eps": fields.take("rms_norm_eps"),
        "tied": fields.take("tie_word_embeddings", False),
    }


def decoder_fields(model: Node) -> dict[str, Any]:
    """The same as fields."""
    return {
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "vocab_size": model["vocab"],
        "hidden_size": model["dim"],
        "num_hidden_layers": model["depth"],
        "rms_norm_eps": model["norm_eps"],
        "tie_word_embeddings": model["tied"],
    }


def sparse_options(fields: Fields, depth: int) -> Node | None:
    """Qwen's ``decoder_sparse_step`` and ``mlp_only_layers`` as ``at``; None for a model without a mixture."""
    step, dense = fields.number("decoder_sparse_step", 1), set(fields.listed("mlp_only_layers", int, []))
    layers = [i for i in range(step - 1, depth, step) if i not in dense]
    return at_of(layers, depth) if layers else None


def at_of(layers: Sequence[int], depth: int) -> Node:
    """The ``at`` that names these layers of a stack: all from one on, every n-th one, or a list."""
    given = sorted(layers)
    if given == list(range(given[0], depth)):
        return {"first": given[0]}
    step = given[0] + 1
    return {"every": step} if given == list(range(step - 1, depth, step)) else {"layers": given}


def sparse_fields(model: Node) -> dict[str, Any]:
    """The same as fields: a step, or every layer that is not a mixture."""
    if model["moe"]["at"]["every"] is not None:
        return {"decoder_sparse_step": model["moe"]["at"]["every"], "mlp_only_layers": []}
    mixtures = mixture_layers(model)
    return {"decoder_sparse_step": 1, "mlp_only_layers": [i for i in range(model["depth"]) if i not in mixtures]}


def mixture_layers(model: Node) -> list[int]:
    """The layers of a decoder that are mixtures."""
    return indices(model["moe"]["at"], model["depth"])


def indices(at: Node, depth: int) -> list[int]:
    """The layers that an ``at`` names, in a stack of ``depth``."""
    if at["first"] is not None:
        return list(range(at["first"], depth))
    return list(range(at["every"] - 1, depth, at["every"])) if at["every"] is not None else sorted(at["layers"])


def first_of(model: Node) -> int:
    """The first mixture of a decoder in which all layers from there on are mixtures.

    Raises:
        FormatError: some are not.
    """
    layers = mixture_layers(model)
    if layers != list(range(layers[0], model["depth"])):
        raise FormatError(f"mixtures at {layers}: this family has mixtures from one layer on")
    return layers[0]


def biased_moe_options(fields: Fields) -> Node:
    """Dense layers first; sigmoid affinities, groups, a selection bias; gates renormalised, then scaled."""
    groups, hidden = fields.number("n_group"), fields.number("moe_intermediate_size")
    chosen = fields.number("topk_group")
    return {
        "at": {"first": fields.take("first_k_dense_replace")},
        "router": {
            "use": "topk",
            "score": "sigmoid",
            "top_k": fields.number("num_experts_per_tok"),
            "renormalize": fields.take("norm_topk_prob"),
            "scale": fields.take("routed_scaling_factor"),
            **({"groups": groups, "top_groups": chosen, "group_score": "top2_sum"} if groups > 1 else {}),
        },
        "experts": {
            "use": "glu",
            "count": fields.either("n_routed_experts", "num_experts", "num_local_experts"),
            "hidden": hidden,
        },
        "shared": {"use": "glu", "hidden": fields.number("n_shared_experts") * hidden},  # one net in their files
        "balancers": {"bias": {"use": "sign_bias"}},
    }


def biased_moe_fields(model: Node) -> dict[str, Any]:
    """The same as fields."""
    moe = model["moe"]
    router, experts = moe["router"], moe["experts"]
    return {
        "first_k_dense_replace": first_of(model),
        "num_experts_per_tok": router["top_k"],
        "norm_topk_prob": router["renormalize"],
        "routed_scaling_factor": router["scale"],
        "n_group": router["groups"],
        "topk_group": router["top_groups"] or router["groups"],
        "n_routed_experts": experts["count"],
        "moe_intermediate_size": experts["hidden"],
        "n_shared_experts": moe["shared"]["count"] * moe["shared"]["hidden"] // experts["hidden"],
    }
