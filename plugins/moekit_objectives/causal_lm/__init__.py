"""Next-token prediction, with the terms of multi-token prediction if the model has them.

Source: DeepSeek-V3 2024 (section 2.2, eqs 24 and 25; arXiv 2412.19437). Their ``L_k`` sums over the ``T - k``
positions with a token k places after the next, yet divides by T; so does this. Lambda is .3 for the first 10T of
14.8T tokens and .1 from then on (section 4.2).

It also serves targets of a source: it depends on logits and targets alone.

The z-loss of the output softmax, ``weight · mean(logsumexp(logits)²)``, keeps logits from drifting: 1e-4 in Mesh
TensorFlow (``transformer.py``), lingvo's GShard builder and the T5X configurations of Switch and ST-MoE (flaxformer
``tokens_choose_base.gin``; ``t5x/losses.py``).

The pooled balance loss is that of the mixtures in ``transformers`` (``load_balancing_loss_func`` of Mixtral):
``E · sum_e f_e · P_e``, with f and P means over the valid tokens of all layers together, so that f adds up to K. Layers
may be uneven in opposite ways. A balancer's loss is one of each layer.
"""

from collections.abc import Mapping
from typing import ClassVar

from moekit.spec.fields import MetricInfo, option
from moekit.spec.kinds import ObjectiveSpec


class CausalLM(ObjectiveSpec):
    """Options of next-token prediction."""

    takes: ClassVar[frozenset[str]] = frozenset({"next_token"})
    mtp_weight: float = option(0.3, "weight of the mean of the multi-token losses (lambda); 0 omits them", ge=0)
    mtp_late_weight: float | None = option(None, "lambda late in training (DeepSeek-V3: .1); null: as before", ge=0)
    mtp_late_from: float = option(
        0.676, "fraction of training from which it applies; DeepSeek-V3: 10T/14.8T", ge=0, le=1
    )
    z_loss: float = option(0.0, "weight of the mean squared logsumexp of the next token's logits; T5X: 1e-4", ge=0)
    pooled_balance: float = option(
        0.0, "weight of one balance loss over all mixtures together; transformers: router_aux_loss_coef", ge=0
    )
    exact: bool = option(False, "log the share of sequences in which every valid target is the likeliest token")

    def metrics(self) -> Mapping[str, MetricInfo]:
        """The loss, bits per byte where tokens spell text, and ``exact`` if the option says so."""
        found = {
            "loss": MetricInfo("loss", unit="nats per token"),
            "bits_per_byte": MetricInfo("bits per byte", headline=True),
        }
        if self.pooled_balance:
            found["pooled_balance"] = MetricInfo("balance loss, all mixtures together")
        return found | ({"exact": MetricInfo("exact", lower_is_better=False)} if self.exact else {})

    def weight_at(self, progress: float) -> float:
        """Lambda at the fraction ``progress`` of training completed."""
        if self.mtp_late_weight is not None and progress >= self.mtp_late_from:
            return self.mtp_late_weight
        return self.mtp_weight
