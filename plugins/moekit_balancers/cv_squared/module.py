"""The squared coefficient of variation of importance or load. Reference implementation: ``naive.py``."""

from __future__ import annotations

import torch
from torch import Tensor

from moekit.contracts import BalanceContext, Balancer, LayerDims, LossTerm
from moekit.routing import ExpertChoice, Routing, Soft, TokenChoice
from moekit_balancers.cv_squared import CVSquared


class CVSquaredLoss(Balancer):
    """``CV(v)² = var(v) / mean(v)²`` over the experts' ``v``: importance or load.

    Source: Shazeer et al. 2017. Importance, eq. 6 and 7: ``Importance_e = sum_t g_te``, over the tokens that are sent
    to e. Load, appendix A: ``Load_e = sum_t P(t, e)``, the probability that newly sampled noise would send t to e. The
    router gives it (``Routing.smooth_load_E``) in training; without it there is no loss of load. The paper uses both,
    each with weight 0.1 in language models: configure two balancers.

    The variance is that of the population, as in the authors' code. They also add 1e-10 to the squared mean, which
    gates that are all small, as sigmoids may be, would reach: the loss would vanish. Ports that use the unbiased
    variance are off by a factor of E / (E - 1).

    Value: 0 at balance, and with one expert; E - 1 when one expert has everything. Scaling all gates changes nothing.

    Gradient: reaches the gates (importance) or the router's smooth load.

    Micro-batches: statistics are of one forward pass on one rank, and CV² is not a mean over tokens. Averaged over
    micro-batches, weighted by tokens, it is larger than the CV² of the whole batch, because chance imbalances of small
    batches cancel in their sum. So k micro-batches or ranks do not equal one large batch; which ranks compute the k
    micro-batches does not matter.

    Padding is excluded. Shapes and dtypes: the value is 0-d, of the gates' dtype (at least fp32). No state.
    """

    def __init__(self, spec: CVSquared, dims: LayerDims) -> None:
        super().__init__()
        self.spec = spec

    def loss(self, routing: Routing, context: BalanceContext) -> LossTerm | None:
        """The loss of one pass; None if it is of a load that the router does not give (without noise)."""
        v_E = importance_E(routing) if self.spec.of == "importance" else routing.smooth_load_E
        return None if v_E is None else LossTerm(value=cv_squared(v_E), weight=self.spec.weight)


def cv_squared(v_E: Tensor) -> Tensor:
    """0-d: population variance over squared mean; 0 for a single value, and where all are 0."""
    mean = v_E.mean()
    over_mean_E = v_E / mean.where(mean.abs() >= torch.finfo(mean.dtype).tiny, 1)  # first: a small mean's square is 0
    return (over_mean_E - over_mean_E.mean()).square().mean()


def importance_E(routing: Routing) -> Tensor:
    """Differentiable: the sum of each expert's gates over the valid tokens sent to it.

    Under soft routing: the sum of its combine weights over tokens and slots.

    Raises:
        TypeError: the routing is of an unknown form.
    """
    if isinstance(routing, TokenChoice):
        counts_TK, gate_TK = routing.counts_TK(), routing.gate_TK
        if counts_TK is not None:
            gate_TK = gate_TK.masked_fill(~counts_TK, 0)
        zero_E = torch.zeros(routing.num_experts, dtype=gate_TK.dtype, device=gate_TK.device)
        return zero_E.scatter_add(0, routing.expert_TK.flatten(), gate_TK.flatten())
    if isinstance(routing, ExpertChoice):
        gate_EC = routing.gate_EC
        if routing.valid_T is not None:
            gate_EC = gate_EC.masked_fill(~routing.valid_T[routing.token_EC], 0)
        return gate_EC.sum(1)
    if isinstance(routing, Soft):
        combine_TEP = routing.combine_TEP
        if routing.valid_T is not None:
            combine_TEP = combine_TEP.masked_fill(~routing.valid_T[:, None, None], 0)
        return combine_TEP.sum((0, 2))
    raise TypeError(f"the importance of a {type(routing).__name__} is not defined")
