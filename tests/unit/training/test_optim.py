"""The optimizer: groups split by layout, state by parameter name; the schedule's state is the step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_ranks import as_rank
from torch import nn
from torch.distributed.tensor import DTensor, Shard

from moekit import load
from moekit.contracts import Model
from moekit.errors import CheckpointError
from moekit.moe_layer import MoELayer
from moekit.parallel.mesh import world_mesh
from moekit.registry import build
from moekit.spec.kinds import MoE
from moekit.training.optim import StepSchedule, optimizer_of, save_by_name, split_by_layout
from moekit_dispatchers.grouped import Grouped
from moekit_experts.glu import Glu
from moekit_lightning.sharded import Sharded
from moekit_lightning.sharded.fsdp import shard
from moekit_lightning.sharded.module import with_expert_parallel
from moekit_routers.topk import TopK

SMALL = [
    "model.attention={use: gqa, heads: 2, kv_heads: 1, head_dim: 8}", "model.dim=16", "model.depth=2", "model.vocab=48",
    "model.ffn.hidden=16", "model.moe.experts.hidden=8", "model.moe.shared.hidden=8", "model.mtp=null", "data=null",
]  # fmt: skip


def test_groups_are_split_by_layout_and_keep_options_and_order() -> None:
    with as_rank(1):
        mesh = world_mesh("cpu")
        a, b, c = (nn.Parameter(torch.zeros(1, 4)) for _ in "abc")
        d, e = (nn.Parameter(DTensor.from_local(torch.zeros(1, 4), mesh, [Shard(0)], run_check=False)) for _ in "de")
        optimizer = torch.optim.SGD([{"params": [a, d, b], "lr": 0.5}, {"params": [e, c], "momentum": 0.9}], lr=0.25)
        split_by_layout(optimizer)
        names = {id(p): name for name, p in zip("abcde", (a, b, c, d, e), strict=True)}
    found = [("".join(names[id(p)] for p in g["params"]), g["lr"], g["momentum"]) for g in optimizer.param_groups]
    assert found == [("ab", 0.5, 0), ("d", 0.5, 0), ("e", 0.25, 0.9), ("c", 0.25, 0.9)]


def test_every_group_of_a_recipes_optimizer_has_one_layout() -> None:
    """Routed experts are plain tensors, other parameters are DTensors: a ``foreach`` kernel cannot mix them."""
    with as_rank(2):
        recipe = with_expert_parallel(load("deepseek_v3", SMALL), Sharded(ep=4))
        model: Model = build(recipe.model)
        shard(model, 4, "cpu")
        optimizer = optimizer_of(recipe, model, 10)["optimizer"]
        kinds = [{isinstance(p, DTensor) for p in group["params"]} for group in optimizer.param_groups]
    assert all(len(kind) == 1 for kind in kinds) and {True, False} == set().union(*kinds)


def trained(model: nn.Module, *groups: list[str], **options: Any) -> torch.optim.AdamW:
    """An optimizer over groups of names after one step; a group's learning rate depends on its first name."""
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [{"params": [named[n] for n in names], "lr": 1.1 if "bias" in names[0] else 0.1, **options} for names in groups]
    )
    save_by_name(optimizer, model)
    for i, parameter in enumerate(named.values()):
        parameter.grad = torch.full_like(parameter, 1.0 + i)
    optimizer.step()
    return optimizer


def test_a_state_loads_into_other_groups() -> None:
    model = nn.Linear(3, 3)
    saved = trained(model, ["weight"], ["bias"]).state_dict()
    again = trained(nn.Linear(3, 3), ["bias"], ["weight"])
    again.load_state_dict(saved)
    found = again.state_dict()
    for name in ("weight", "bias"):
        for key, value in saved["state"][name].items():
            assert torch.equal(found["state"][name][key], value), (name, key)
    assert [group["params"] for group in found["param_groups"]] == [["bias"], ["weight"]]
    assert [group["lr"] for group in found["param_groups"]] == [1.1, 0.1]


def test_an_option_that_changed_since_the_state_was_saved_keeps_its_new_value() -> None:
    """Other options are restored, also those that were changed in training."""
    before = trained(nn.Linear(3, 3), ["weight", "bias"], weight_decay=0.5, eps=1e-3)
    before.param_groups[0]["eps"] = 2e-3
    after = trained(nn.Linear(3, 3), ["weight", "bias"], weight_decay=0.25, eps=1e-3, betas=(0.5, 0.6))
    after.load_state_dict(before.state_dict())
    (group,) = after.param_groups
    assert (group["weight_decay"], group["betas"], group["eps"], group["lr"]) == (0.25, (0.5, 0.6), 2e-3, 0.1)


def test_a_changed_rate_and_a_longer_schedule_count_from_the_first_resumed_step() -> None:
    model = nn.Linear(3, 3)

    def built(lr: float, steps: int) -> tuple[torch.optim.SGD, StepSchedule]:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        save_by_name(optimizer, model)
        return optimizer, StepSchedule(optimizer, lambda step: 1 - step / steps)

    optimizer, schedule = built(0.5, 4)
    for _ in range(3):
        optimizer.step()
        schedule.step()
    states = optimizer.state_dict(), schedule.state_dict()
    assert states[1] == {"step": 3}
    for lr, steps, expected in [(0.5, 4, 0.125), (0.5, 6, 0.25), (1.0, 6, 0.5)]:
        optimizer, schedule = built(lr, steps)
        optimizer.load_state_dict(states[0])
        schedule.load_state_dict(states[1])
        assert optimizer.param_groups[0]["lr"] == schedule.get_last_lr()[0] == expected


class Scaled(torch.optim.SGD):
    """An optimizer with a number for each expert in its state."""


def test_a_rank_loads_the_state_of_its_own_experts() -> None:
    layer = MoELayer.from_spec(MoE(router=TopK(top_k=1), experts=Glu(count=2, hidden=6), dispatcher=Grouped()), dim=5)
    assert layer.spec is not None
    layer.spec = replace(layer.spec, experts=Glu(count=8, hidden=6))
    layer.dispatcher.local_experts = range(4, 6)
    optimizer = Scaled(layer.parameters(), lr=0.1)
    save_by_name(optimizer, layer)
    name, p = next((n, p) for n, p in layer.named_parameters() if n.startswith("experts."))
    optimizer.load_state_dict({**optimizer.state_dict(), "state": {name: {"scale": torch.arange(8.0)}}})
    assert optimizer.state[p]["scale"].tolist() == [4.0, 5.0]


def test_state_with_a_row_for_each_expert_is_rejected_where_experts_are_sharded_again() -> None:
    """It was loaded whole: which rows, and in which form, no layout says."""
    with as_rank(2):
        recipe = with_expert_parallel(load("deepseek_v3", SMALL), Sharded(ep=2))
        model: Model = build(recipe.model)
        shard(model, 2, "cpu")
        optimizer = Scaled(model.parameters(), lr=0.1)
        save_by_name(optimizer, model)
        name, experts = next((n, p) for n, p in model.named_parameters() if ".experts." in n and isinstance(p, DTensor))
        saved = {**optimizer.state_dict(), "state": {name: {"scale": torch.zeros(2 * len(experts))}}}
        with pytest.raises(CheckpointError, match=rf"the optimizer's state has scale .* for {name}"):
            optimizer.load_state_dict(saved)


@pytest.mark.parametrize("bias", [False, True])
def test_a_state_of_other_parameters_is_rejected(bias: bool) -> None:
    saved = trained(nn.Linear(3, 3, bias=bias), ["weight", "bias"] if bias else ["weight"]).state_dict()
    other = trained(nn.Linear(3, 3, bias=not bias), ["weight"] if bias else ["weight", "bias"])
    with pytest.raises(CheckpointError, match=r"the optimizer's state was saved for other parameters: bias$"):
        other.load_state_dict(saved)


def test_a_rejected_state_names_only_a_few_parameters() -> None:
    names = [f"{i}.{kind}" for i in range(4) for kind in ("weight", "bias")]
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    saved = trained(nn.Linear(3, 3), ["weight", "bias"]).state_dict()
    with pytest.raises(CheckpointError, match=r"other parameters: 0.bias, 0.weight, 1.bias, .*, and 5 more$"):
        trained(model, names).load_state_dict(saved)
