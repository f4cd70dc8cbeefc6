"""A plugin whose code misbehaves in training is named: its component, its path in the model, what it returned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar
from unittest.mock import Mock

import fake_plugins
import pytest
import torch
from torch import Tensor, nn
from training_helpers import trainer

from moekit import Balancer, LossSum, LossTerm, Router, Routing, build
from moekit.component import Component
from moekit.contracts import BalanceContext, Batch, LayerDims, ModelOutput, Objective
from moekit.errors import PluginError
from moekit.moe_layer import MoELayer
from moekit.registry import temporary
from moekit.spec.fields import option
from moekit.spec.kinds import BalancerSpec, ObjectiveSpec, OptimizerSpec, RouterSpec, ScheduleSpec
from moekit.training import LitMoE
from moekit.training.components import values_checked
from moekit_doctor.raised import raised_in
from moekit_objectives.causal_lm import CausalLM
from moekit_routers.topk import TopK

pytestmark = pytest.mark.usefixtures("quiet_lightning")
Make = Callable[..., dict[str, Any]]


class OddRouter(RouterSpec):
    """A top-k router that has a fault."""

    takes_bias: ClassVar[bool] = True
    causal: ClassVar[bool] = True

    fault: str = option("none", "what is wrong with it")

    def active(self, num_experts: int) -> float:
        return 2


class OddBalancer(BalancerSpec):
    """A balancer whose step raises."""


class OddObjective(ObjectiveSpec):
    """An objective that has a fault."""

    fault: str = option("none", "what is wrong with it")


class OddOptimizer(OptimizerSpec):
    """An optimizer that has a fault."""

    takes_shards: ClassVar[bool] = True

    fault: str = option("none", "what is wrong with it")


class OddSchedule(ScheduleSpec):
    """A schedule that has a fault."""

    fault: str = option("none", "what is wrong with it")


class OddRouterModule(Router):
    def __init__(self, spec: OddRouter, dims: LayerDims) -> None:
        super().__init__()
        self.spec, self.calls = spec, 0
        self.inner = build(TopK(top_k=2), dims)

    def forward(
        self,
        x_TD: Tensor,
        *,
        valid_T: Tensor | None = None,
        selection_bias_E: Tensor | None = None,
        token_T: Tensor | None = None,
    ) -> Routing:
        routing = self.inner(x_TD, valid_T=valid_T, selection_bias_E=selection_bias_E)
        self.calls += self.training
        match self.spec.fault:
            case "rows":
                return replace(routing, expert_TK=routing.expert_TK[1:], gate_TK=routing.gate_TK[1:])
            case "twice":
                return replace(routing, expert_TK=routing.expert_TK[:, :1].expand(-1, 2))
            case "twice, later" if self.calls > 1:
                return replace(routing, expert_TK=routing.expert_TK[:, :1].expand(-1, 2))
            case "raise":
                return helper(routing)
        return routing


def helper(routing: Routing) -> Routing:
    raise KeyError("a fault")


class OddBalancerModule(Balancer):
    def __init__(self, spec: OddBalancer, dims: LayerDims) -> None:
        super().__init__()

    def loss(self, routing: Routing, context: BalanceContext) -> LossTerm | None:
        return None

    def step(self, load_E: Tensor, *, progress: float = 0.0) -> None:
        raise KeyError("a fault")


class OddObjectiveModule(Objective):
    def __init__(self, spec: OddObjective) -> None:
        super().__init__()
        self.spec, self.inner = spec, build(CausalLM())

    def forward(self, output: ModelOutput, batch: Batch, *, progress: float = 0.0) -> LossSum:
        loss: Any = self.inner(output, batch, progress=progress)
        faults: dict[str, Callable[[], Any]] = {
            "mean": lambda: loss.total / loss.count,
            "per token": lambda: replace(loss, total=loss.total.expand(3)),
            "number": lambda: replace(loss, count=12),
            "metric": lambda: replace(loss, metrics={"hits": loss.count}),
            "raise": lambda: helper(loss),
        }
        return faults.get(self.spec.fault, lambda: loss)()  # type: ignore[no-any-return]


class Descent(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        return helper(closure)


def optimizer(spec: OddOptimizer, model: nn.Module) -> Any:
    return Descent(model.parameters(), lr=0.1) if spec.fault == "raise" else None


def schedule(spec: OddSchedule, total: int) -> Any:
    factors: dict[str, Any] = {
        "text": "1",
        "nan": float("nan"),
        "none": None,
        "negative": -1.0,
        "tensor": torch.ones(2),
    }
    return None if spec.fault == "no function" else lambda step: factors[spec.fault] if step == 1 else torch.ones(())


OFFERS = [
    Component(name="odd", spec=OddRouter, target=OddRouterModule, summary="s"),
    Component(name="odd", spec=OddBalancer, target=OddBalancerModule, summary="s"),
    Component(name="odd", spec=OddObjective, target=OddObjectiveModule, summary="s"),
    Component(name="odd", spec=OddOptimizer, target=optimizer, summary="s"),
    Component(name="odd", spec=OddSchedule, target=schedule, summary="s"),
]


@pytest.fixture(autouse=True)
def odd() -> Iterator[None]:
    with temporary(fake_plugins.module("oddities", components=OFFERS)):
        yield


def fails(recipe: dict[str, Any], error: type[Exception], message: str, *, steps: int = 3) -> list[str]:
    """The notes of the error that training this recipe ends with."""
    with pytest.raises(error, match=message) as caught:
        trainer(steps, limit_val_batches=0).fit(LitMoE(recipe))
    return getattr(caught.value, "__notes__", [])


def with_moe(recipe: Make, **moe: Any) -> dict[str, Any]:
    tree = recipe()
    tree["model"]["moe"] |= moe
    return tree


ROUTER_NOTE = r"raised in model.blocks.1.ffn.router (OddRouterModule), plugin 'oddities'"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "rows",
            r"^Router OddRouterModule returned expert_TK = torch.int64 \[15, 2\]\n  expected an int64 tensor \[16, K\]",
        ),
        ("twice", r"^Router OddRouterModule returned expert . twice in row 0 of expert_TK\n  expected distinct"),
    ],
)
def test_a_malformed_routing_ends_training_with_the_routers_path_and_plugin(
    recipe: Make, fault: str, message: str
) -> None:
    assert fails(with_moe(recipe, router={"use": "odd", "fault": fault}), PluginError, message) == [ROUTER_NOTE]


@pytest.mark.parametrize("compile", [False, True])
def test_values_are_checked_in_the_first_step_of_a_run_alone(
    recipe: Make, compile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moekit.training.module.compile_parts", lambda model: None)  # its checks alone matter here
    tree = with_moe(recipe, router={"use": "odd", "fault": "none"})
    tree["compile"] = compile
    module = LitMoE(tree)
    seen: list[tuple[int, bool, bool]] = []
    layer = next(m for m in module.modules() if isinstance(m, MoELayer))
    layer.register_forward_pre_hook(
        lambda m, _: seen.append((module.trainer.global_step, m.check_values, torch.is_grad_enabled()))
    )
    trainer(3, limit_val_batches=0, accumulate_grad_batches=2).fit(module)
    first = [(0, True, False), (0, False, True)] if compile else [(0, True, True)]
    assert seen == first * 2 + [(1, False, True), (1, False, True), (2, False, True), (2, False, True)]


def test_a_later_step_does_not_read_values(recipe: Make) -> None:
    trainer(3, limit_val_batches=0).fit(LitMoE(with_moe(recipe, router={"use": "odd", "fault": "twice, later"})))


def test_values_checked_restores_what_was_set() -> None:
    two = nn.Module()
    for name, value in (("a", True), ("b", False)):
        layer = MoELayer.__new__(MoELayer)
        nn.Module.__init__(layer)
        layer.check_values = value
        two.add_module(name, layer)
    with values_checked(two):
        assert two.a.check_values and two.b.check_values
    assert two.a.check_values and not two.b.check_values


def test_an_exception_in_a_component_carries_its_path_and_plugin(recipe: Make) -> None:
    assert fails(with_moe(recipe, router={"use": "odd", "fault": "raise"}), KeyError, "a fault") == [ROUTER_NOTE]
    step = with_moe(recipe, balancers={"b": {"use": "odd"}})
    assert fails(step, KeyError, "a fault") == [
        "raised in model.blocks.1.ffn.balancers.b (OddBalancerModule), plugin 'oddities'"
    ]
    objective = recipe(objective={"use": "odd", "fault": "raise"})
    assert fails(objective, KeyError, "a fault") == ["raised in objective (OddObjectiveModule), plugin 'oddities'"]
    optimizer = recipe(optimizer={"use": "odd", "fault": "raise"}, schedule=None)
    assert fails(optimizer, KeyError, "a fault") == ["raised in plugin 'oddities'"]


def test_an_exception_of_moekits_own_has_no_note(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moekit.training.module.compile_parts", Mock(side_effect=KeyError("a fault")))
    assert raised_in(KeyError("never raised"), nn.Module()) == ""
    assert fails(recipe(compile=True), KeyError, "a fault") == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("mean", r"^Objective OddObjectiveModule returned Tensor\n  expected a LossSum\(total=..., count=...\)"),
        (
            "per token",
            r"^Objective OddObjectiveModule returned total = torch.float32 \[3\]\n  expected a LossSum of 0-d",
        ),
        ("number", "^Objective OddObjectiveModule returned count = 12"),
        (
            "metric",
            r"^Objective OddObjectiveModule returned metrics\['hits'\] = .*\n  expected metrics of two 0-d tensors",
        ),
    ],
)
def test_what_an_objective_must_not_return_ends_training(recipe: Make, fault: str, message: str) -> None:
    fails(recipe(objective={"use": "odd", "fault": fault}), PluginError, message)


def test_an_optimizer_that_is_none_is_named(recipe: Make) -> None:
    message = r"^optimizer 'oddities/odd' returned None\n  expected a torch.optim.Optimizer$"
    fails(recipe(optimizer={"use": "odd"}), PluginError, message)


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("no function", r"None\n  expected a function from a step"),
        ("none", r"None for step 1\n  expected a finite number of at least 0"),
        ("text", "'1' for step 1"),
        ("nan", "nan for step 1"),
        ("negative", "-1.0 for step 1"),
        ("tensor", r"tensor\(\[1., 1.\]\) for step 1"),
    ],
)
def test_a_schedule_that_gives_no_factor_is_named(recipe: Make, fault: str, found: str) -> None:
    fails(recipe(schedule={"use": "odd", "fault": fault}), PluginError, f"^schedule 'oddities/odd' returned {found}")
