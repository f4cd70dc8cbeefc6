"""The device-level balance loss. Oracle: ``naive.py`` beside this file."""

from __future__ import annotations

from moekit.contracts import BalanceContext, Balancer, LayerDims, LossTerm
from moekit.errors import MoekitError
from moekit.routing import Routing, TokenChoice
from moekit_balancers.device_balance import DeviceBalance
from moekit_balancers.devices import uneven_devices
from moekit_balancers.statistics import count_BE, group_sum_BG, mean_score_BE, share_of


class DeviceBalanceLoss(Balancer):
    """``sum_i f''_i P''_i`` over G devices: ``f''_i`` the mean of ``f'_e`` on device i, ``P''_i`` the sum of ``P_e``.

    ``f'_e = E/(K T) · count_e``, so ``f''_i`` is G times the device's share of all choices. Expert e lies on device
    ``e // (E/G)``.

    Source: DeepSeekMoE 2024, eq. 15 to 17, over a batch; DeepSeek-V2 2024, eq. 26 to 28, over a sequence. ``scope``
    ``micro_batch`` is the batch of one pass on one rank: under accumulation, k micro-batches do not equal one batch.
    Under ``sequence`` they do, as long as sequences stay whole; sequences weigh by their valid tokens.
    Under either, k micro-batches come to the same on one rank or dealt to several.

    Value: 1 at perfect balance, for any K, E and G; no lower bound. G when one device gets everything. With
    ``groups`` = E it is the expert-level loss, with 1 the constant 1, without a gradient.

    P is taken of ``s_te / sum_j s_tj`` (which a softmax is already). The gradient flows through P alone; f is a
    constant, before capacity. Padding counts in neither.

    Shapes and dtypes: the value is 0-d, of the affinities' dtype (at least fp32). No state.

    Args:
        spec: its options.
        dims: E.

    Raises:
        MoekitError: ``groups`` does not divide E.
    """

    def __init__(self, spec: DeviceBalance, dims: LayerDims) -> None:
        super().__init__()
        if problems := list(uneven_devices(spec.groups, dims.num_experts)):
            raise MoekitError("balancer device_balance: " + "; ".join(problems))
        self.spec = spec

    def loss(self, routing: Routing, context: BalanceContext) -> LossTerm:
        """The loss of one pass."""
        assert isinstance(routing, TokenChoice)
        G, B = self.spec.groups, context.num_sequences if self.spec.scope == "sequence" else 1
        count_BG = group_sum_BG(count_BE(routing.expert_TK, routing.num_experts, routing.counts_TK(), B), G)
        P_BG = group_sum_BG(mean_score_BE(routing.scores_TE, routing.valid_T, B, normalize=True), G)
        share_BG = share_of(count_BG, P_BG.dtype)
        return LossTerm(value=G * (share_BG * P_BG).sum(), weight=self.spec.weight)
