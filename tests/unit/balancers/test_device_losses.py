"""The losses over devices of DeepSeekMoE and DeepSeek-V2: balance, collapse, limits, unsent choices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from routings import loss_of, token_choice
from torch import Tensor

from moekit import MoekitError, build
from moekit.contracts import LayerDims
from moekit.routing import TokenChoice
from moekit.spec.fields import ConflictError
from moekit.spec.kinds import BalancerSpec, MoE
from moekit_balancers.communication_balance import CommunicationBalance
from moekit_balancers.device_balance import DeviceBalance
from moekit_balancers.load_balance import LoadBalance
from moekit_dispatchers.grouped import Grouped
from moekit_experts.glu import Glu
from moekit_routers.topk import TopK


def uniform(chosen: list[list[int]], E: int) -> TokenChoice:
    return token_choice(torch.full((len(chosen), E), 1 / E, dtype=torch.float64), chosen)


def device(routing: TokenChoice, groups: int, scope: str = "micro_batch", num_sequences: int = 1) -> Tensor:
    return loss_of(DeviceBalance(groups=groups, scope=scope), routing, num_sequences)


def communication(routing: TokenChoice, groups: int, top_groups: int) -> Tensor:
    return loss_of(CommunicationBalance(groups=groups, top_groups=top_groups), routing)


def test_the_loss_is_minimal_for_even_devices_whatever_their_experts_loads() -> None:
    """Experts 0 and 2 take everything, one on each device: 2 as an expert-level loss, 1 as a device-level one."""
    scores_TE = torch.tensor([[0.5, 0.0, 0.5, 0.0]] * 4, dtype=torch.float64)
    routing = token_choice(scores_TE, [[0], [2], [0], [2]])
    assert device(routing, 2).item() == pytest.approx(1)
    assert device(routing, 4).item() == pytest.approx(2)


def test_collapse_to_one_device_gives_the_number_of_devices() -> None:
    scores_TE = torch.tensor([[0.0, 0.0, 0.3, 0.7, 0.0, 0.0]] * 5, dtype=torch.float64)
    assert device(token_choice(scores_TE, [[3, 2]] * 5), 3).item() == pytest.approx(3)


def test_one_expert_per_device_gives_the_expert_level_loss_and_one_device_a_constant() -> None:
    logits_TE = torch.randn(10, 4, dtype=torch.float64, requires_grad=True)
    routing = token_choice(logits_TE.softmax(-1), logits_TE.topk(2).indices)
    expert = loss_of(LoadBalance(), routing)
    grads = [torch.autograd.grad(v, logits_TE, retain_graph=True)[0] for v in (device(routing, 4), expert)]
    torch.testing.assert_close(device(routing, 4), expert, rtol=1e-13, atol=0)
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-15)
    constant = device(routing, 1)
    (grad_TE,) = torch.autograd.grad(constant, logits_TE)
    assert constant.item() == pytest.approx(1, rel=1e-12)
    torch.testing.assert_close(grad_TE, torch.zeros_like(grad_TE), rtol=0, atol=1e-16)


def test_the_scope_says_over_which_tokens_devices_are_balanced() -> None:
    scores_TE = torch.tensor([[0.9, 0.1]] * 3 + [[0.1, 0.9]] * 3)
    routing = token_choice(scores_TE, [[0]] * 3 + [[1]] * 3)
    assert device(routing, 2, "micro_batch", 2).item() == pytest.approx(1)
    assert device(routing, 2, "sequence", 2).item() == pytest.approx(2 * 0.9)


def test_communication_is_one_when_every_token_uses_exactly_m_devices() -> None:
    """Eight experts on four devices; M = 2."""
    exact = uniform([[0, 2], [4, 6], [1, 5], [3, 7]], 8)
    assert communication(exact, 4, 2).item() == pytest.approx(1, rel=1e-12)
    half = uniform([[0, 1], [2, 3], [4, 5], [6, 7]], 8)  # both experts on one device
    assert communication(half, 4, 2).item() == pytest.approx(0.5, rel=1e-12)
    assert communication(half, 4, 1).item() == pytest.approx(1, rel=1e-12)
    assert device(half, 4).item() == pytest.approx(1, rel=1e-12)


def test_a_token_counts_once_per_device_and_collapse_gives_g_over_m() -> None:
    scores_TE = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0, 0.0]] * 3, dtype=torch.float64)
    routing = token_choice(scores_TE, [[0, 1]] * 3)
    assert communication(routing, 3, 2).item() == pytest.approx(3 / 2, rel=1e-12)
    assert communication(routing, 3, 1).item() == pytest.approx(3, rel=1e-12)


def test_the_communication_loss_of_a_worked_example() -> None:
    """G = 2, M = 1; three of four tokens go to device 0: f = (1.5, .5), P = (.6, .4)."""
    routing = token_choice(torch.tensor([[0.4, 0.2, 0.3, 0.1]] * 4, dtype=torch.float64), [[0], [1], [0], [2]])
    assert communication(routing, 2, 1).item() == pytest.approx(1.5 * 0.6 + 0.5 * 0.4, rel=1e-12)


def test_choices_that_are_not_sent_are_not_received() -> None:
    """The second choice of both tokens is not sent: the loss is that of the first choices alone."""
    scores_TE = torch.rand(2, 4, dtype=torch.float64)
    routing = token_choice(scores_TE, [[0, 2], [3, 1]])
    sent = replace(routing, sent_TK=torch.tensor([[True, False], [True, False]]))
    alone = token_choice(scores_TE, [[0], [3]])
    assert device(sent, 2).item() == pytest.approx(device(alone, 2).item(), rel=1e-12)
    assert communication(sent, 2, 1).item() == pytest.approx(communication(alone, 2, 1).item(), rel=1e-12)
    assert communication(routing, 2, 1).item() != pytest.approx(communication(alone, 2, 1).item())


@pytest.mark.parametrize("spec", [DeviceBalance(groups=4), CommunicationBalance(groups=4, top_groups=2)])
def test_devices_that_cannot_be_even_are_rejected(spec: BalancerSpec) -> None:
    sentence = "groups=4 does not divide the 6 experts evenly; expected one of 1, 2, 3, 6"
    with pytest.raises(ConflictError, match=f"^balancer 'far': {sentence}$"):
        MoE(router=TopK(top_k=2), experts=Glu(count=6, hidden=2), dispatcher=Grouped(), balancers={"far": spec})
    with pytest.raises(MoekitError, match=f": {sentence}\n"):
        build(spec, LayerDims(dim=1, num_experts=6))


def test_no_token_can_use_more_devices_than_there_are() -> None:
    with pytest.raises(ConflictError, match="top_groups=3 is more than groups=2"):
        CommunicationBalance(groups=2, top_groups=3)


def test_the_routers_limit_of_devices_is_the_losss() -> None:
    parts = {"experts": Glu(count=8, hidden=2), "dispatcher": Grouped()}
    router = TopK(top_k=4, groups=4, top_groups=3)
    MoE(router=router, **parts, balancers={"far": CommunicationBalance(groups=4, top_groups=3)})
    MoE(router=router, **parts, balancers={"far": CommunicationBalance(groups=2, top_groups=1)})  # other devices
    with pytest.raises(ConflictError, match="'far': top_groups=2 is not the router's top_groups=3: give both the same"):
        MoE(router=router, **parts, balancers={"far": CommunicationBalance(groups=4, top_groups=2)})
