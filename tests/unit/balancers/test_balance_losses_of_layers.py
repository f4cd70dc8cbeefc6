"""Balance losses of several layers are computed for each layer and summed. Other libraries made the mistakes cited."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from routings import token_choice

from moekit.contracts import BalanceContext, LayerDims, LayerReport
from moekit.registry import current
from moekit.spec.fields import defaults_of
from moekit.training.metrics import balance_sum
from moekit_balancers.load_balance import LoadBalance
from moekit_balancers.load_balance.module import LoadBalanceLoss


def report_of(chosen: Sequence[int], weight: float) -> LayerReport:
    """The report of a layer of two experts whose tokens chose these, with affinity 1."""
    expert_TK = torch.tensor(chosen)[:, None]
    scores_TE = F.one_hot(expert_TK[:, 0], 2).double()
    routing = token_choice(scores_TE, expert_TK)
    balancer = LoadBalanceLoss(LoadBalance(weight=weight), LayerDims(dim=1, num_experts=2))
    term = balancer.loss(routing, BalanceContext(num_sequences=1, training=True))
    dropped = torch.zeros((), dtype=torch.int64)
    return LayerReport(routing=routing, dropped=dropped, losses={"load": term})


def test_layers_with_opposite_imbalance_do_not_cancel() -> None:
    """transformers #28255, #31464: f and P were computed over the tokens of all layers together."""
    one, other = report_of([0, 0, 0], weight=0.5), report_of([1, 1, 1], weight=0.5)
    even = report_of([0, 1, 0, 1], weight=0.5)
    total = balance_sum({"one": one, "other": other, "even": even})
    assert total is not None
    # 3 tokens each of two layers at the worst value (E = 2), 4 of a balanced layer (1); not 10 tokens of one layer
    assert total.item() == 0.5 * (3 * 2 + 3 * 2 + 4 * 1)


def test_losses_of_layers_are_summed_not_averaged() -> None:
    """OLMo-core divides the weight by the number of layers; here a weight is that of one layer, whatever the depth."""
    report = report_of([0, 0, 1], weight=0.1)
    once, thrice = balance_sum({"a": report}), balance_sum({"a": report, "b": report, "c": report})
    assert once is not None and thrice is not None
    torch.testing.assert_close(thrice, 3 * once)


def test_every_balance_loss_has_a_default_weight_above_zero() -> None:
    """Megatron-Bridge PR #5165: the coefficient was 0 if a configuration did not set it."""
    specs = [component.spec_class for component in current().components("balancer")]
    weights = {spec.__name__: defaults_of(spec)["weight"] for spec in specs if "weight" in defaults_of(spec)}
    assert {"LoadBalance", "SequenceBalance"} <= set(weights)
    assert all(weight > 0 for weight in weights.values()), weights
