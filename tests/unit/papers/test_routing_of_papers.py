"""Every recipe routes, balances, drops and initialises as its paper does.

The tables follow the papers' equations, not the recipes. Comments say where a small recipe deviates from its paper.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from moekit.contracts import LayerDims
from moekit.registry import build, current
from moekit.routing import TokenChoice, lost_tokens
from moekit.spec import load
from moekit.spec.kinds import BalancerSpec, MoE, RouterSpec
from moekit_balancers.communication_balance import CommunicationBalance
from moekit_balancers.cv_squared import CVSquared
from moekit_balancers.device_balance import DeviceBalance
from moekit_balancers.load_balance import LoadBalance
from moekit_balancers.sequence_balance import SequenceBalance
from moekit_balancers.sign_bias import SignBias
from moekit_balancers.z_loss import ZLoss
from moekit_dispatchers.auto import Auto
from moekit_dispatchers.capacity import Capacity
from moekit_dispatchers.device_capacity import DeviceCapacity
from moekit_models.yarn import Yarn
from moekit_objectives.causal_lm import CausalLM
from moekit_routers.dense import Dense
from moekit_routers.hierarchical import Hierarchical
from moekit_routers.noisy_topk import NoisyTopK
from moekit_routers.topk import TopK

Balancers = dict[str, BalancerSpec]
EVEN: Balancers = {
    "importance": CVSquared(of="importance", weight=0.1),
    "load": CVSquared(of="load", weight=0.1),
}
FIRST: Balancers = {"load": LoadBalance(count="first", weight=1e-2)}
TOP_2 = TopK(top_k=2, score="softmax", renormalize=True, send_threshold=0.5)
SWITCH = TopK(top_k=1, score="softmax", renormalize=False, input_jitter=1e-2)
ST_MOE = TopK(top_k=2, score="softmax", renormalize=True, send_threshold=0.2)
V2 = {"groups": 8, "top_groups": 3, "group_score": "max", "renormalize": False}
V3 = TopK(
    top_k=8, score="sigmoid", groups=8, top_groups=4, group_score="top2_sum", renormalize=True, scale=2.5, bias=False
)
V2_LOSSES: Balancers = {
    "load": LoadBalance(scope="sequence", weight=3e-3),
    "device": DeviceBalance(groups=8, scope="sequence", weight=0.05),
    "communication": CommunicationBalance(groups=8, top_groups=3, weight=0.02),
}

ROUTING: dict[str, tuple[RouterSpec, Balancers]] = {
    "jacobs1991": (Dense(), {}),
    "shazeer2017": (NoisyTopK(top_k=4, noise_epsilon=1e-2, zero_init=True), EVEN),
    "shazeer2017-h": (Hierarchical(branches=8, top_groups=2, top_k=2), EVEN),
    **{f"shazeer2017-{n}": (NoisyTopK(top_k=4), EVEN) for n in ("4", "32", "256")},
    **{
        f"shazeer2017-{n}": (Hierarchical(branches=16, top_groups=2, top_k=2), EVEN)
        for n in ("256h", "1024h", "4096h", "34m", "143m")
    },
    "shazeer2017-65536h": (Hierarchical(branches=256, top_groups=2, top_k=2), EVEN),
    "gshard": (TOP_2, FIRST),
    **{f"gshard-{n}": (TOP_2, FIRST) for n in ("12b", "37b", "50b", "150b", "200b", "600b")},
    "glam": (TOP_2, FIRST),
    **{f"glam-{n}": (TOP_2, FIRST) for n in ("0.1b", "1.7b", "1.7b-32e", "1.7b-128e", "1.7b-256e", "8b", "64b")},
    "switch": (SWITCH, FIRST),  # with one choice, the first choices are all of them
    **{f"switch-{n}": (SWITCH, {"load": LoadBalance(weight=1e-2)}) for n in ("base", "large", "xxl", "c")},
    **{
        name: (ST_MOE, {**FIRST, "z": ZLoss(weight=1e-3)})
        for name in ("st_moe", "st_moe_finetune", "st_moe-l", "st_moe-32b")
    },
    "deepseek_moe": (
        TopK(top_k=6, renormalize=False),
        {"load": LoadBalance(weight=3e-3), "device": DeviceBalance(groups=4, weight=0.05, scope="micro_batch")},
    ),
    "deepseek_moe-2b": (TopK(top_k=7), {"load": LoadBalance(weight=0.01)}),
    "deepseek_moe-16b": (TopK(top_k=6), {"load": LoadBalance(weight=1e-3)}),
    "deepseek_moe-145b": (
        TopK(top_k=12),
        {"load": LoadBalance(weight=3e-3), "device": DeviceBalance(groups=4, weight=0.05, scope="micro_batch")},
    ),
    "deepseek_v2": (TopK(top_k=6, scale=6.0, **V2), V2_LOSSES),  # type: ignore[arg-type]
    "deepseek_v2-236b": (TopK(top_k=6, scale=16.0, **V2), V2_LOSSES),  # type: ignore[arg-type]
    "deepseek_v2-lite": (
        TopK(top_k=6, renormalize=False, scale=1.0),
        {"load": LoadBalance(scope="sequence", weight=1e-3)},
    ),
    "aux_free": (
        TopK(top_k=6, score="sigmoid"),
        {"bias": SignBias(rate=1e-2)},
    ),  # ten times the paper's rate, since it has fewer steps
    **{f"aux_free-{n}": (TopK(top_k=6, score="sigmoid"), {"bias": SignBias(rate=1e-3)}) for n in ("1b", "3b")},
    "deepseek_v3": (V3, {"bias": SignBias(rate=1e-2, until=0.966), "sequence": SequenceBalance(weight=1e-4)}),
    "deepseek_v3-671b": (V3, {"bias": SignBias(rate=1e-3, until=0.967), "sequence": SequenceBalance(weight=1e-4)}),
}

DENSE = "base/language_model"


def moe_of(name: str) -> MoE:
    moe = load(name).model.moe  # type: ignore[attr-defined]
    assert isinstance(moe, MoE)
    return moe


def test_the_table_has_every_recipe() -> None:
    """But for those of ``lineage/``, which are of moekit's own making."""
    names = {c.name for c in current().recipes if c.plugin == "papers"}
    assert {name for name in names if not name.startswith("lineage/")} == {*ROUTING, DENSE}


@pytest.mark.parametrize("name", ROUTING)
def test_a_recipe_has_its_papers_router_and_balancers(name: str) -> None:
    moe = moe_of(name)
    router, balancers = ROUTING[name]
    assert moe.router == router
    assert dict(moe.balancers) == balancers


CAPACITY = {
    # factor of S/E (without K) in training and in evaluation, and which pairs have priority
    "gshard": (2.0, 2.0, "choice"),
    "glam": (2.0, 2.0, "choice"),
    "switch": (1.25, 2.0, "position"),
    "st_moe": (1.25, 2.0, "choice"),
    "st_moe_finetune": (0.75, 2.0, "choice"),
    "switch-c": (1.0, 2.0, "position"),
    "switch-xxl": (1.25, 4.0, "position"),
}
GROUPS = {
    "gshard-600b": 2048, "gshard-200b": 2048, "gshard-150b": 2048, "gshard-50b": 2048, "gshard-37b": 8192,
    "gshard-12b": 8192, "switch-base": 8192, "switch-large": 4096, "switch-xxl": 4096, "switch-c": 2048,
    "st_moe-32b": 4096, "st_moe-l": 4096,
    **dict.fromkeys([f"glam-{n}" for n in ("0.1b", "1.7b", "1.7b-32e", "1.7b-128e", "1.7b-256e", "8b", "64b")], 1024),
}  # fmt: skip
"""Tokens that are routed together at published sizes; the small recipes route a batch, which is about as large."""


@pytest.mark.parametrize("name", [n for n in ROUTING if n.partition("-")[0] in CAPACITY])
def test_a_recipe_has_its_papers_capacity(name: str) -> None:
    moe = moe_of(name)
    factor, in_evaluation, order = CAPACITY.get(name) or CAPACITY[name.partition("-")[0]]
    dispatchers = [moe.dispatcher, getattr(moe, "encoder_dispatcher", None)]
    E, K, S = moe.experts.count, int(moe.router.active(moe.experts.count)), moe.experts.count * 400
    for spec in filter(None, dispatchers):
        assert isinstance(spec, Capacity) and spec.per == "batch" and spec.group_size == GROUPS.get(name)
        dispatcher: Any = build(spec, LayerDims(dim=4, num_experts=2))
        assert dispatcher.train().slots(S, K, E) == factor * S / E
        assert dispatcher.eval().slots(S, K, E) == in_evaluation * S / E
    assert moe.dispatcher.order == order  # type: ignore[attr-defined]


def test_switch_c_gives_an_expert_two_slots_where_its_share_is_one() -> None:
    spec: Any = moe_of("switch-c").dispatcher
    dispatcher: Any = build(spec, LayerDims(dim=4, num_experts=2))
    assert dispatcher.train().slots(2048, 1, 2048) == dispatcher.eval().slots(2048, 1, 2048) == 2
    assert dispatcher.groups(8192, 4) == (4, 2048)


@pytest.mark.parametrize(("order", "lost"), [("choice", 0.001), ("position", 0.34)])
def test_st_moes_order_loses_few_tokens_at_even_load(order: str, lost: float) -> None:
    """Queued token by token, K = 2 choices fill the 1.25 T slots early: a third of the tokens loses both experts."""
    torch.manual_seed(0)
    T, E = 4096, 64
    scores_TE = torch.rand(T, E)
    expert_TK = scores_TE.topk(2).indices
    routing = TokenChoice(
        logits_TE=scores_TE, scores_TE=scores_TE, expert_TK=expert_TK, gate_TK=scores_TE.gather(1, expert_TK)
    )
    spec: Any = replace(moe_of("st_moe-32b").dispatcher, order=order)
    left, _ = build(spec, LayerDims(dim=4, num_experts=E)).limit(routing, 1)
    assert float(lost_tokens(routing, left)) / T == pytest.approx(lost, abs=0.01)


def test_fine_tuning_at_three_quarters_leaves_a_quarter_of_the_tokens_without_an_expert_at_best() -> None:
    """At even load .75 T slots take three quarters of the first choices, and so at least 62.5 % of both are dropped."""
    T, E = 64, 16
    expert_TK = torch.stack([torch.arange(T) % E, (torch.arange(T) + 1) % E], dim=1)
    scores_TE = torch.rand(T, E)
    routing = TokenChoice(
        logits_TE=scores_TE, scores_TE=scores_TE, expert_TK=expert_TK, gate_TK=torch.ones(expert_TK.shape)
    )
    spec: Any = moe_of("st_moe_finetune").dispatcher
    left, dropped = build(spec, LayerDims(dim=4, num_experts=E)).train().limit(routing, 1)
    assert (int(lost_tokens(routing, left)) / T, int(dropped) / (2 * T)) == (0.25, 0.625)


def test_only_the_small_st_moe_encoder_prefers_high_affinities() -> None:
    moe: Any = moe_of("st_moe")
    assert (moe.dispatcher.order, moe.encoder_dispatcher.order) == ("choice", "priority")
    large: Any = moe_of("st_moe-32b")
    assert (large.dispatcher.order, large.encoder_dispatcher) == ("choice", None)


@pytest.mark.parametrize("name", [n for n in ROUTING if n.startswith(("shazeer", "deepseek", "aux_free"))])
def test_shazeer_and_deepseek_drop_nothing_or_by_device(name: str) -> None:
    by_device = DeviceCapacity(groups=8, factor=1.0, exempt=0.1, inner=Auto())
    expected = by_device if name in ("deepseek_v2", "deepseek_v2-236b") else Auto()
    assert moe_of(name).dispatcher == expected


@pytest.mark.parametrize("name", ["deepseek_v2-236b", "deepseek_v2-lite"])
def test_v2_has_its_own_yarn_factor(name: str) -> None:
    yarn = load(name).model.attention.yarn  # type: ignore[attr-defined]
    assert yarn == Yarn(factor=40.0, original=4096, beta_fast=32.0, beta_slow=1.0, mscale=0.0707)
    assert yarn.score_factor() == pytest.approx(1.260804**2, rel=1e-6)


def test_v3_has_its_own_yarn_factor() -> None:
    yarn = load("deepseek_v3-671b").model.attention.yarn  # type: ignore[attr-defined]
    assert yarn == Yarn(factor=40.0, original=4096, beta_fast=32.0, beta_slow=1.0, mscale=0.1)
    assert yarn.score_factor() == pytest.approx(1.368888**2, rel=1e-6)


@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v3-671b"])
def test_v3_changes_lambda_after_10_of_its_14_8_trillion_tokens(name: str) -> None:
    objective = load(name).objective
    assert isinstance(objective, CausalLM)
    assert (objective.weight_at(0.67), objective.weight_at(0.69)) == (0.3, 0.1)
    bias = moe_of(name).balancers["bias"]
    assert isinstance(bias, SignBias) and 14.2 / 14.8 < bias.until < 14.4 / 14.8


@pytest.mark.parametrize("name", [n for n in ROUTING if n.startswith(("switch-", "st_moe-"))])
def test_switch_and_st_moe_initialise_with_scale_01(name: str) -> None:
    model: Any = load(name).model
    assert (model.init_scale, model.init_std, model.embedding_std) == (0.1, None, 1.0)


@pytest.mark.parametrize("name", [n for n in ROUTING if n.startswith(("deepseek", "aux_free-")) and "-" in n])
def test_deepseek_models_initialise_with_std_0006(name: str) -> None:
    model: Any = load(name).model
    assert (model.init_scale, model.init_std) == (None, 0.006)


def test_moe_layers_are_at_the_papers_positions() -> None:
    at = {name: moe_of(name).at.indices(12) for name in ROUTING if hasattr(moe_of(name), "at")}  # type: ignore[attr-defined]
    every_other, every_fourth = (1, 3, 5, 7, 9, 11), (3, 7, 11)
    for name, found in at.items():
        family, _, size = name.partition("-")
        if family in ("gshard", "glam", "switch"):
            assert found == (tuple(range(12)) if size == "c" else every_other), name
        elif family.startswith("st_moe"):
            assert found == (every_fourth if size else every_other), name
        else:
            first = {"deepseek_moe-2b": 0, "deepseek_v3-671b": 3}.get(name, 1)
            assert found == tuple(range(first, 12)), name


@pytest.mark.parametrize(
    ("name", "dropout"),
    [("4", 0.1), ("32", 0.1), ("256", 0.1), ("256h", 0.1), ("1024h", 0.2), ("4096h", 0.2), ("34m", 0.3), ("143m", 0.4)],
)
def test_shazeers_dropout_grows_with_the_model(name: str, dropout: float) -> None:
    assert load(f"shazeer2017-{name}").model.dropout == dropout  # type: ignore[attr-defined]
