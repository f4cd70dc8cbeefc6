"""The device-level balance loss. Reference implementation: ``naive.py``."""

from __future__ import annotations

import torch

from moekit.contracts import BalanceContext, Balancer, LayerDims, LossTerm
from moekit.errors import MoekitError
from moekit.routing import Routing, token_choice_of
from moekit_balancers.device_balance import DeviceBalance
from moekit_balancers.devices import uneven_devices
from moekit_balancers.shares import mean_score_BE, share_of


class DeviceBalanceLoss(Balancer):
    """``sum_i f''_i P''_i`` over G devices: ``f''_i`` the mean of ``f'_e`` on device i, ``P''_i`` the sum of ``P_e``.

    ``f'_e = E/(K T) · count_e``, so ``f''_i`` is G times the device's share of all choices. Expert e is on device
    ``e // (E/G)``.

    Source: DeepSeekMoE 2024, eq. 15 to 17, over a batch; DeepSeek-V2 2024, eq. 26 to 28, over a sequence.

    Scope: ``micro_batch`` is one pass on one rank, so under gradient accumulation k micro-batches give another loss
    than the whole batch. Under ``sequence`` they give the same, as long as they keep sequences whole; each sequence is
    weighted by its valid tokens. In both scopes it does not matter which ranks compute the micro-batches.

    Value: 1 at perfect balance, for any K, E and G; this is not a lower bound. G when one device gets everything. With
    ``groups`` = E it is the expert-level loss; with ``groups`` = 1 it is the constant 1, without a gradient.

    P is the mean of ``s_te / sum_j s_tj`` (a softmax is normalised already). The gradient flows through P alone; f is
    a constant, counted before capacity drops. Padding is excluded from both.

    Shapes and dtypes: the value is 0-d, of the affinities' dtype (at least fp32). No state.

    Raises:
        MoekitError: ``groups`` does not divide E.
    """

    def __init__(self, spec: DeviceBalance, dims: LayerDims) -> None:
        super().__init__()
        if problems := list(uneven_devices(spec.groups, dims.num_experts)):
            raise MoekitError("balancer device_balance: " + "; ".join(problems))
        self.spec = spec

    def loss(self, routing: Routing, context: BalanceContext) -> LossTerm:
        """The loss of one pass.

        Raises:
            MoekitError: the routing is not by token choice.
        """
        routing = token_choice_of(routing, "balancer 'device_balance'")
        G, B = self.spec.groups, context.num_sequences if self.spec.scope == "sequence" else 1
        load_BE, P_BE = routing.load_BE(B), mean_score_BE(routing, B, normalize=True)
        load_BG, P_BG = (torch.unflatten(t_BE, 1, (G, -1)).sum(-1) for t_BE in (load_BE, P_BE))
        return LossTerm(value=G * (share_of(load_BG, P_BG.dtype) * P_BG).sum(), weight=self.spec.weight)
