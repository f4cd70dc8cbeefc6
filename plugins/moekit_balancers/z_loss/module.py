"""The router z-loss. Reference implementation: ``naive.py``."""

from __future__ import annotations

import torch

from moekit.contracts import BalanceContext, Balancer, LayerDims, LossTerm
from moekit.routing import Routing
from moekit_balancers.z_loss import ZLoss


class RouterZLoss(Balancer):
    """``(1/T) sum_t (log sum_e exp z_te)²`` over the T valid tokens of a pass.

    Source: ST-MoE 2022 (Zoph et al.), eq. 5. It does not balance: it keeps logits near 0, where rounding errors are
    small and training is stable.

    Value: (ln E)² at zero logits (0.480453 for E = 2), and 0 where logsumexp is 0. Unlike a softmax it is not
    shift-invariant, so that it can bound the logits' common level.

    Gradient: ``dL/dz_tj = (2/T) · lse_t · softmax(z_t)_j``.

    Padding is excluded from the sum and from T. The value is a mean over tokens, so micro-batches and ranks give that
    of the whole batch.

    Shapes and dtypes: the value is 0-d, at least fp32, whatever the logits' dtype. No state.
    """

    def __init__(self, spec: ZLoss, dims: LayerDims) -> None:
        super().__init__()
        self.spec = spec

    def loss(self, routing: Routing, context: BalanceContext) -> LossTerm:
        """The loss of one pass."""
        logits_TE, valid_T = routing.logits_TE, routing.valid_T
        logits_TE = logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32))
        if valid_T is not None:
            logits_TE = logits_TE.masked_fill(~valid_T[:, None], 0)
        square_T = logits_TE.logsumexp(-1).square()
        if valid_T is not None:
            square_T = square_T.masked_fill(~valid_T, 0)
        return LossTerm(value=square_T.sum() / routing.num_valid().clamp(min=1), weight=self.spec.weight)
