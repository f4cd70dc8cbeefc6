"""Requests and plans of recipes, and five weights on four devices, whose plan can be computed by hand."""

from __future__ import annotations

from collections.abc import Sequence

from moekit.spec.kinds import MoE
from moekit.spec.recipe import Recipe
from moekit_dispatchers.grouped import Grouped
from moekit_experts.glu import Glu
from moekit_plan.activations import LayerUse
from moekit_plan.plan import RunPlan, RunPlanner, recompute_of
from moekit_plan.request import PlanRequest, eps_of
from moekit_plan.weight_bytes import Weight
from moekit_routers.topk import TopK

GIB = 2**30

WEIGHTS = [
    Weight(name="embedding.weight", shape=(48, 16), experts=0, unit=-1, trained=True),  # 768
    Weight(name="blocks.0.ffn.w_up", shape=(1, 24, 16), experts=0, unit=0, trained=True),  # 384
    Weight(name="blocks.1.moe.router.weight", shape=(8, 16), experts=0, unit=1, trained=False),  # 128
    Weight(name="blocks.1.moe.experts.w_up", shape=(8, 8, 16), experts=8, unit=1, trained=True),  # 1024
    Weight(name="blocks.2.ffn.w_up", shape=(1, 24, 16), experts=0, unit=2, trained=True),  # 384
]
SPEC = MoE(router=TopK(top_k=3), experts=Glu(count=8, hidden=8), dispatcher=Grouped())
USE = LayerUse(tokens=10, dim=16, out_dim=12, element_bytes=2, out_element_bytes=4)
REQUEST = PlanRequest(
    devices=4, eps=(2,), batch=1, sequence=10, accumulate=3, precision="bf16-mixed", device_memory=2**30
)


def request_for(recipe: Recipe, devices: int = 1, eps: Sequence[int] = (), **changes: object) -> PlanRequest:
    options: dict[str, object] = {
        "devices": devices, "eps": eps_of(recipe, devices, eps), "batch": 2, "sequence": 16, "accumulate": 1,
        "precision": "32-true", "device_memory": 80 * GIB,
    }  # fmt: skip
    return PlanRequest(**(options | changes))  # type: ignore[arg-type]


def plan_of(recipe: Recipe, devices: int = 1, eps: Sequence[int] = (), **changes: object) -> RunPlan:
    return RunPlanner(recipe).plan(request_for(recipe, devices, eps, **changes), recompute_of(recipe.model))
