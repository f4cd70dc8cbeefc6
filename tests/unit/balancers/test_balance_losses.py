"""What holds for every balance loss: without a valid token it is 0, and so is its gradient."""

from __future__ import annotations

import pytest
import torch

from moekit import build
from moekit.contracts import BalanceContext, LayerDims
from moekit.routing import TokenChoice
from moekit.spec.kinds import BalancerSpec
from moekit_balancers.communication_balance import CommunicationBalance
from moekit_balancers.cv_squared import CVSquared
from moekit_balancers.device_balance import DeviceBalance
from moekit_balancers.load_balance import LoadBalance
from moekit_balancers.sequence_balance import SequenceBalance
from moekit_balancers.z_loss import ZLoss

LOSSES: list[BalancerSpec] = [
    CommunicationBalance(groups=2, top_groups=2),
    CVSquared(of="importance"),
    DeviceBalance(groups=2, scope="sequence"),
    DeviceBalance(groups=2, scope="micro_batch"),
    *(LoadBalance(scope=scope) for scope in ("sequence", "micro_batch", "global_batch", "step")),
    SequenceBalance(count="routed"),
    SequenceBalance(count="affinity"),
    ZLoss(),
]


def loss_and_gradients(spec: BalancerSpec, num_sequences: int, **routing: torch.Tensor) -> list[torch.Tensor]:
    leaves = [routing[name].requires_grad_() for name in ("logits_TE", "scores_TE", "gate_TK")]
    balancer = build(spec, LayerDims(dim=1, num_experts=4))
    context = BalanceContext(num_sequences=num_sequences, training=True)
    value = balancer.loss(TokenChoice(**routing), context).value
    return [value.detach(), *torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("spec", LOSSES, ids=str)
@pytest.mark.parametrize(("T", "B"), [(0, 0), (0, 2), (4, 2)])
def test_without_a_valid_token_a_loss_is_zero_and_so_is_its_gradient(spec: BalancerSpec, T: int, B: int) -> None:
    found = loss_and_gradients(
        spec,
        B,
        logits_TE=torch.full((T, 4), torch.nan),
        scores_TE=torch.full((T, 4), torch.nan),
        valid_T=torch.zeros(T, dtype=torch.bool),
        expert_TK=torch.zeros(T, 1, dtype=torch.int64),
        gate_TK=torch.full((T, 1), torch.nan),
    )
    assert not any(tensor.any() for tensor in found)


@pytest.mark.parametrize("spec", LOSSES, ids=str)
def test_affinities_that_are_all_zero_give_finite_losses_and_gradients(spec: BalancerSpec) -> None:
    """Sigmoids of very negative logits are 0, and a token's affinities are divided by their sum."""
    found = loss_and_gradients(
        spec,
        1,
        logits_TE=torch.zeros(3, 4),
        scores_TE=torch.zeros(3, 4),
        expert_TK=torch.tensor([[0], [1], [2]]),
        gate_TK=torch.zeros(3, 1),
    )
    assert all(tensor.isfinite().all() for tensor in found)
