"""MoELayer connects its parts correctly. The parts are minimal fakes, so that only the connections are tested."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from routings import token_choice
from torch import Tensor

from moekit import (
    BalanceContext,
    Balancer,
    Dispatched,
    Dispatcher,
    ExpertBank,
    Groups,
    LayerDims,
    LossTerm,
    MoELayer,
    Router,
    Routing,
    TokenChoice,
    build,
)
from moekit.moe_layer import run_on_all
from moekit.spec.fields import ConflictError
from moekit.spec.kinds import BalancerSpec, DispatcherSpec, MoE, RouterSpec
from moekit_balancers.cv_squared import CVSquared
from moekit_balancers.load_balance import LoadBalance
from moekit_balancers.sign_bias import SignBias
from moekit_dispatchers.capacity import Capacity
from moekit_dispatchers.device_capacity import DeviceCapacity
from moekit_dispatchers.expert_parallel import ExpertParallel
from moekit_dispatchers.loop import Loop
from moekit_experts.glu import Glu
from moekit_routers.dense import Dense
from moekit_routers.strict import Strict
from moekit_routers.topk import TopK

D, E = 3, 2


class FirstExpert(Router):
    """Sends every token to expert 0, or to the expert with the largest selection bias."""

    def forward(
        self,
        x_TD: Tensor,
        *,
        valid_T: Tensor | None = None,
        selection_bias_E: Tensor | None = None,
        token_T: Tensor | None = None,
    ) -> TokenChoice:
        scores_TE = torch.zeros(x_TD.shape[0], E)
        best = 0 if selection_bias_E is None else int(selection_bias_E.argmax())
        expert_TK, gate_TK = torch.full((x_TD.shape[0], 1), best), torch.ones(x_TD.shape[0], 1)
        return token_choice(scores_TE, expert_TK, valid_T, gate_TK=gate_TK)


class Scale(ExpertBank):
    """Expert e multiplies by ``scale[e]``."""

    def __init__(self, scales: list[float]) -> None:
        super().__init__()
        self.num_experts, self.out_dim = len(scales), D
        self.register_buffer("scale_EX", torch.tensor(scales)[:, None])

    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        return x_ND * groups.per_row(self.scale_EX)


class PerToken(Dispatcher):
    """Multiplies each token by the scale of its expert."""

    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        assert isinstance(routing, TokenChoice) and isinstance(experts, Scale)
        y = [x * experts.scale_EX[e] for x, e in zip(x_TD, routing.expert_TK[:, 0], strict=True)]
        return Dispatched(y_TO=torch.stack(y), dropped=torch.tensor(0))


class Bias(Balancer):
    def __init__(self, bias: list[float]) -> None:
        super().__init__()
        self.register_buffer("bias_E", torch.tensor(bias))
        self.stepped: list[list[int]] = []

    def selection_bias(self) -> Tensor:
        return self.bias_E

    def step(self, load_E: Tensor, *, progress: float = 0.0) -> None:
        self.stepped.append(load_E.tolist())


class CountSequences(Balancer):
    def loss(self, routing: Routing, context: BalanceContext) -> LossTerm:
        return LossTerm(value=torch.tensor(float(context.num_sequences)), weight=0.5)


def layer(**parts: object) -> MoELayer:
    return MoELayer(router=FirstExpert(), experts=Scale([2.0, 3.0]), dispatcher=PerToken(), **parts)  # type: ignore[arg-type]


def test_tokens_pass_the_experts_that_the_router_chose() -> None:
    x = torch.randn(2, 5, D)
    y, report = layer()(x)
    assert torch.equal(y, 2 * x)
    assert report.load_E.tolist() == [10, 0]
    assert report.loss() == 0 and not report.losses


def test_shared_experts_are_added_ungated_and_summed() -> None:
    x = torch.randn(4, D)
    y, _ = layer(shared=Scale([10.0, 100.0]))(x)
    torch.testing.assert_close(y, 112 * x)


def test_run_on_all_of_one_expert_is_the_expert() -> None:
    x = torch.randn(4, D)
    assert torch.equal(run_on_all(Scale([5.0]), x), 5 * x)


def test_biases_are_summed_and_reach_the_router() -> None:
    x = torch.randn(4, D)
    y, report = layer(balancers={"a": Bias([0.3, 0.0]), "b": Bias([0.0, 0.4])})(x)
    assert torch.equal(y, 3 * x)
    assert report.load_E.tolist() == [0, 4]


def test_losses_are_weighted_and_receive_the_number_of_sequences() -> None:
    _, report = layer(balancers={"n": CountSequences(), "none": Bias([0.0, 0.0])})(torch.randn(3, 4, D))
    assert set(report.losses) == {"n"}
    assert report.losses["n"].value == 3
    assert report.loss() == 1.5


def test_a_balancer_named_router_raises_because_the_routers_loss_has_that_name() -> None:
    with pytest.raises(ValueError, match="a balancer cannot be named 'router': the report has the router's own loss"):
        layer(balancers={"router": CountSequences()})


def test_padding_counts_as_no_load() -> None:
    valid = torch.tensor([[True, False], [True, True]])
    _, report = layer()(torch.randn(2, 2, D), valid=valid)
    assert report.load_E.tolist() == [3, 0]


@pytest.mark.parametrize("valid", [torch.ones(3, 2, dtype=torch.bool), torch.ones(2, 3), torch.ones(6).bool()])
def test_valid_of_another_shape_or_dtype_raises(valid: Tensor) -> None:
    with pytest.raises(ValueError, match=r"valid is torch\..*; expected torch\.bool \[2, 3\]"):
        layer()(torch.randn(2, 3, D), valid=valid)


def test_router_and_bank_of_different_sizes_raise() -> None:
    mismatched = MoELayer(router=FirstExpert(), experts=Scale([2.0, 3.0, 4.0]), dispatcher=PerToken())
    with pytest.raises(ValueError, match="routes to 2 experts, but the experts module has 3"):
        mismatched(torch.randn(4, D))


def test_a_spec_instead_of_a_module_raises() -> None:
    with pytest.raises(TypeError, match=r"dispatcher: LayerDims is not a module"):
        MoELayer(router=FirstExpert(), experts=Scale([2.0]), dispatcher=LayerDims(dim=D, num_experts=E))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("router", "balancer", "message"),
    [
        (
            TopK(top_k=1),
            CVSquared(of="load"),
            "balancer 'b': of=load needs a differentiable load, which TopK does not give",
        ),
        (Dense(), LoadBalance(), r"^Dense routes by 'soft', but balancer 'b' \(LoadBalance\) takes token_choice$"),
        (Dense(), SignBias(), "balancer 'b' .* gives a selection bias, but router Dense takes none"),
    ],
)
def test_a_balancer_that_does_not_fit_the_router_raises_in_a_layer_built_by_hand(
    router: RouterSpec, balancer: BalancerSpec, message: str
) -> None:
    dims = LayerDims(dim=D, num_experts=E)
    with pytest.raises(ConflictError, match=message):
        MoELayer(
            router=build(router, dims),
            experts=Scale([2.0, 3.0]),
            dispatcher=PerToken(),
            balancers={"b": build(balancer, dims)},
        )


def test_step_reaches_every_balancer() -> None:
    first, second = Bias([0.0, 0.0]), Bias([0.0, 0.0])
    layer(balancers={"a": first, "b": second}).step(torch.tensor([7, 1]))
    assert first.stepped == second.stepped == [[7, 1]]


@pytest.mark.parametrize("given", [{"router": {"use": "topk"}}, "deepseek_v3", None])
def test_from_spec_of_anything_but_a_layers_spec_raises(given: object) -> None:
    with pytest.raises(TypeError, match=r"is not a layer's spec; expected MoE\("):
        MoELayer.from_spec(given, dim=8)  # type: ignore[arg-type]


def test_a_gate_on_the_input_is_for_one_expert_a_token() -> None:
    for router in (TopK(top_k=2), Dense(), Strict(top_k=1)):
        with pytest.raises(ValueError, match="gate_on=input is for one expert a token"):
            MoE(router=router, experts=Glu(count=3, hidden=4), dispatcher=Loop(), gate_on="input")
    dims = LayerDims(dim=3, num_experts=3)
    parts = [build(spec, dims) for spec in (Strict(top_k=1), Glu(count=3, hidden=4), Loop())]
    by_hand = MoELayer(router=parts[0], experts=parts[1], dispatcher=parts[2], gate_on="input")
    with pytest.raises(ValueError, match="gate_on='input' needs one expert for each token"):
        by_hand(torch.randn(6, 3))


@pytest.mark.parametrize(
    ("dispatcher", "balancer", "message"),
    [
        (Capacity(), None, "^count=pairs: router Strict lists all experts for each token"),
        (DeviceCapacity(groups=2, inner=Capacity(factor=2.0)), None, "^count=pairs: router Strict lists all experts"),
        (ExpertParallel(local=Capacity()), None, "^count=pairs: router Strict lists all experts for each token"),
        (Loop(), LoadBalance(count="first"), "^balancer 'b': count=first: router Strict lists all experts"),
        (Capacity(count="tokens"), None, ""),
        (Capacity(slots=2), LoadBalance(), ""),
    ],
)
def test_what_counts_choices_rejects_a_router_that_lists_all_experts(
    dispatcher: DispatcherSpec, balancer: BalancerSpec | None, message: str
) -> None:
    """Capacities would take K for E, and drop nothing; a first choice would always be expert 0."""
    balancers = {} if balancer is None else {"b": balancer}
    bank, router, dims = Glu(count=4, hidden=4), Strict(top_k=2), LayerDims(dim=D, num_experts=4)
    with pytest.raises(ConflictError, match=message) if message else nullcontext():
        MoE(router=router, experts=bank, dispatcher=dispatcher, balancers=balancers)
    with pytest.raises(ConflictError, match=message) if message else nullcontext():
        MoELayer(
            router=build(router, dims), experts=build(bank, dims), dispatcher=build(dispatcher, dims),
            balancers={name: build(spec, dims) for name, spec in balancers.items()},
        )  # fmt: skip
