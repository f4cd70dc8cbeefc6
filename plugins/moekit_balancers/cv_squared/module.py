"""The squared coefficient of variation of importance or load. Oracle: ``naive.py`` beside this file."""

from __future__ import annotations

from torch import Tensor

from moekit.contracts import BalanceContext, Balancer, LayerDims, LossTerm
from moekit.routing import Routing
from moekit_balancers.cv_squared import CVSquared
from moekit_balancers.statistics import importance_E

GUARD = 1e-10  # added to the squared mean, so that a batch without tokens gives 0, not NaN


class CVSquaredLoss(Balancer):
    """``CV(v)² = var(v) / mean(v)²`` over the experts' ``v``: importance or load.

    Source: Shazeer et al. 2017. Importance, eq. 6 and 7: ``Importance_e = sum_t g_te``, over the tokens that are sent
    to e. Load, appendix A: ``Load_e = sum_t P(t, e)``, the chance that a fresh draw of the noise sends t to e. The
    router gives it (``Routing.smooth_load_E``) in training; elsewhere there is no loss of load. The paper uses both,
    each with weight 0.1 in language models: two balancers.

    The variance is that of the population, as in the authors' code. Ports that take the unbiased one are off by the
    factor E / (E - 1).

    Value: 0 at balance, and with one expert; E - 1 when one expert has everything. The scale of the gates has no
    effect.

    Gradient: reaches the gates (importance) or the router's smooth load.

    What micro-batches do: statistics are those of one forward pass on one rank, and CV² is no mean over tokens. The
    terms of the parts are averaged with their tokens as weights, and that is more than the CV² of the whole: what is
    uneven by chance in each small part is even in their sum. So k micro-batches or ranks do not equal one big batch.
    They equal each other: k micro-batches come to the same on one rank or dealt to several.

    Padding counts in neither. Shapes and dtypes: the value is 0-d, of the gates' dtype (at least fp32). No state.

    Args:
        spec: its options.
        dims: not needed; part of how every balancer is built.
    """

    def __init__(self, spec: CVSquared, dims: LayerDims) -> None:
        super().__init__()
        self.spec = spec

    def loss(self, routing: Routing, context: BalanceContext) -> LossTerm | None:
        """The loss of one pass; None for a load that the router does not give (without noise)."""
        v_E = importance_E(routing) if self.spec.of == "importance" else routing.smooth_load_E
        return None if v_E is None else LossTerm(value=cv_squared(v_E), weight=self.spec.weight)


def cv_squared(v_E: Tensor) -> Tensor:
    """0-d: population variance over squared mean; 0 for a single value, and where all are 0."""
    mean = v_E.mean()
    return (v_E - mean).square().mean() / (mean.square() + GUARD)
