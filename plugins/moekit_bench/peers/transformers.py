"""transformers: the experts of its Mixtral block, and its own DeepSeek-V3 and Mixtral of a recipe's sizes.

Each is given once for each implementation of the library's experts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from moekit.contracts import Batch, ExpertBank
from moekit.errors import MoekitError
from moekit.spec import to_plain
from moekit.spec.recipe import Recipe
from moekit_bench.measure import Variant
from moekit_bench.peers import PeerModel
from moekit_bench.workload import Workload, stacked_weights

IMPLEMENTATIONS: Final = ("grouped_mm", "eager")
NEEDS_VERSION_5: Final = "--against transformers: needs version 5 or later, whose experts are stacked"

Node = Mapping[str, Any]


def mixtral_experts(work: Workload, experts: ExpertBank) -> list[Variant]:
    """The experts of the Mixtral block, on the same routing. They share their weights with ``experts``.

    Raises:
        MoekitError: a version whose experts are not stacked, or in another layout.
    """
    weights = stacked_weights(experts)
    leaves = [work.x_TD, work.gate_TK, *weights]
    return [
        Variant(name=f"transformers {name}", forward=_experts(work, *weights, name), leaves=leaves, weights=weights)
        for name in IMPLEMENTATIONS
    ]


def _experts(work: Workload, w_in_EHD: Tensor, w_out_EOH: Tensor, implementation: str) -> Callable[[], Tensor]:
    _, D, H, E, K = work.shape
    mixtral: Any = importlib.import_module("transformers.models.mixtral.modeling_mixtral")
    config: Any = importlib.import_module("transformers").MixtralConfig(
        hidden_size=D, intermediate_size=H, num_local_experts=E, num_experts_per_tok=K
    )
    config._experts_implementation = implementation
    if not hasattr(mixtral, "MixtralExperts"):
        raise MoekitError(NEEDS_VERSION_5)
    with torch.device("meta"):
        block: Any = mixtral.MixtralExperts(config)
    if block.gate_up_proj.shape != w_in_EHD.shape or block.down_proj.shape != w_out_EOH.shape:
        raise MoekitError("--against transformers: this version stores its weights in another layout")
    block.gate_up_proj, block.down_proj = w_in_EHD, w_out_EOH  # parameters already, and shared
    return lambda: block(work.x_TD, work.routing.expert_TK, work.gate_TK.to(work.x_TD.dtype))


@dataclass(frozen=True, kw_only=True)
class Family:
    """One of the library's models, and the recipes that it is equal to.

    Attributes:
        name: of its classes, ``<name>Config`` and ``<name>ForCausalLM``.
        must: by path, the options that a recipe must have.
        sizes: converts a model's options to the library's configuration.
        note: what the library's training step omits.
    """

    name: str
    must: Mapping[str, Any]
    sizes: Callable[[Node], dict[str, Any]]
    note: str


def models(recipe: Recipe) -> list[PeerModel]:
    """The library's model, with its own weights.

    Raises:
        MoekitError: the library has no model of this recipe, or its version is below 5.
    """
    plain = to_plain(recipe)
    family = family_of(plain)
    return [_model(family, plain, implementation) for implementation in IMPLEMENTATIONS]


def _model(family: Family, plain: Node, implementation: str) -> PeerModel:
    library: Any = importlib.import_module("transformers")
    config = getattr(library, f"{family.name}Config")(**_common(plain["model"]), **family.sizes(plain["model"]))
    model: Any = getattr(library, f"{family.name}ForCausalLM")(config)
    if not hasattr(model, "set_experts_implementation"):
        raise MoekitError(NEEDS_VERSION_5)
    model.set_experts_implementation(implementation)

    def loss(batch: Batch) -> Tensor:
        out: Tensor = model(batch.inputs, labels=batch.targets, shift_labels=batch.targets, use_cache=False).loss
        return out

    name = f"transformers {family.name} {implementation}"
    return PeerModel(name=name, model=model, loss=loss, note=f"a plain loop; {family.note}")


def _common(model: Node) -> dict[str, Any]:
    return {
        "vocab_size": model["vocab"],
        "hidden_size": model["dim"],
        "num_hidden_layers": model["depth"],
        "num_attention_heads": model["attention"]["heads"],
        "num_experts_per_tok": model["moe"]["router"]["top_k"],
        "num_local_experts": model["moe"]["experts"]["count"],
        "rms_norm_eps": model["norm_eps"],
        "tie_word_embeddings": model["tied"],
        "rope_parameters": {"rope_type": "default", "rope_theta": model["attention"]["rope_theta"]},
        "use_cache": False,
    }


def _deepseek(model: Node) -> dict[str, Any]:
    attention, moe, router = model["attention"], model["moe"], model["moe"]["router"]
    return {
        "intermediate_size": model["ffn"]["hidden"],
        "moe_intermediate_size": moe["experts"]["hidden"],
        "num_key_value_heads": attention["heads"],
        "q_lora_rank": attention["query_rank"],
        "kv_lora_rank": attention["kv_rank"],
        "qk_nope_head_dim": attention["nope_dim"],
        "qk_rope_head_dim": attention["rope_dim"],
        "v_head_dim": attention["value_dim"],
        "n_shared_experts": moe["shared"]["count"] * moe["shared"]["hidden"] // moe["experts"]["hidden"],
        "n_group": router["groups"],
        "topk_group": router["top_groups"],
        "norm_topk_prob": router["renormalize"],
        "routed_scaling_factor": router["scale"],
        "first_k_dense_replace": moe["at"]["first"],
        "num_nextn_predict_layers": 0,
    }


def _mixtral(model: Node) -> dict[str, Any]:
    attention = model["attention"]
    return {
        "intermediate_size": model["moe"]["experts"]["hidden"],
        "num_key_value_heads": attention["kv_heads"],
        "head_dim": attention["head_dim"],
        "sliding_window": None,
    }


DECODER: Final = {
    "objective.use": "causal_lm",
    "optimizer.use": "adamw",
    "model.use": "decoder",
    "model.mtp": None,
    "model.moe.experts.use": "glu",
    "model.moe.experts.activation": "silu",
    "model.moe.router.use": "topk",
    "model.moe.at.every": None,
    "model.moe.at.layers": None,
}

FAMILIES: Final = (
    Family(
        name="DeepseekV3",
        must={
            "model.attention.use": "mla",
            **DECODER,
            "model.attention.yarn": None,
            "model.ffn.use": "glu",
            "model.moe.shared.use": "glu",
            "model.moe.router.score": "sigmoid",
            "model.moe.router.group_score": "top2_sum",
        },
        sizes=_deepseek,
        note="no step of the selection bias, no loss per sequence, nothing logged or checked",
    ),
    Family(
        name="Mixtral",
        must={
            "model.attention.use": "gqa",
            **DECODER,
            "model.moe.shared": None,
            "model.moe.at.first": 0,
            "model.moe.router.score": "softmax",
            "model.moe.router.score_over": "chosen",
            "model.moe.router.scale": 1.0,
            "model.moe.router.groups": 1,
        },
        sizes=_mixtral,
        note="no balance loss, nothing logged or checked",
    ),
)


def family_of(plain: Node) -> Family:
    """The family of a recipe.

    Raises:
        MoekitError: the recipe belongs to none; the message lists its differences to the nearest.
    """
    wrong = {family.name: list(_differences(plain, family.must)) for family in FAMILIES}
    for family in FAMILIES:
        if not wrong[family.name]:
            return family
    name, lines = min(wrong.items(), key=lambda item: len(item[1]))
    known = " and ".join(family.name for family in FAMILIES)
    what = f"--against transformers: of its models, {known} are known here; the recipe differs least from {name}, by"
    raise MoekitError("\n  ".join([what, *lines]))


def _differences(plain: Node, must: Node) -> list[str]:
    found = {path: _at(plain, path) for path in must}
    return [f"{path}={found[path]} (expected {must[path]!r})" for path in must if found[path] != must[path]]


def _at(plain: Node, path: str) -> Any:
    value: Any = plain
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
