"""The language model of Shazeer et al. 2017: a mixture of experts between two LSTMs, applied at every position.

Source: Shazeer et al. 2017, "Outrageously Large Neural Networks" (arXiv 1701.06538), sections 3 and 5.1, Appendix C;
the LSTM with a projection is Sak et al. 2014 (arXiv 1402.1128).
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

from moekit.spec.fields import group, option, slot
from moekit.spec.kinds import ExpertSpec, ModelSpec, MoE
from moekit_models.at import check_dense, dense_equivalent, feed_forward_work, no_leak


class LSTM(ModelSpec):
    """Options of the LSTM model. Exactly one of ``moe`` and ``ffn`` is between its two LSTMs."""

    gives: ClassVar[str] = "next_token"
    takes: ClassVar[str] = "tokens"

    vocab: int = option(help="tokens in the vocabulary", ge=1)
    dim: int = option(help="width of the tokens, and of each layer's output", ge=1)
    hidden: int | None = option(
        None, "cells of each LSTM; default: dim; if there are more, its output is projected to dim", ge=1
    )
    moe: MoE | None = group("the mixture between the LSTMs; null for a dense model", default=None)
    ffn: ExpertSpec | None = slot("expert", "one expert instead of the mixture, for a dense model", optional=True)
    dropout: float = option(0.0, "share of each layer's output (not the head's) set to 0 in training", ge=0, lt=1)
    init_std: float = option(0.05, "standard deviation of initial weights", gt=0)

    def check(self) -> Iterable[str]:
        """Layers are as wide as their residuals, one part is between the LSTMs, and none sees later tokens."""
        if self.hidden is not None and self.hidden < self.dim:
            yield (
                f"hidden={self.hidden} is less than dim={self.dim}: an LSTM's output is added to its input, and only "
                f"a wider one is projected to dim; set hidden to {self.dim} or more, or to null"
            )
        if (self.moe is None) == (self.ffn is None):
            given = "neither" if self.moe is None else "both"
            yield f"give moe or ffn ({given} given): exactly one of them is between the two LSTMs"
        if self.ffn is not None:
            yield from check_dense(self.ffn)
        if self.moe is not None:
            yield from no_leak(self.moe, "an LSTM")

    def feed_forward_work(self, experts_per_token: float | None = None) -> float:
        """Multiply-adds of what is between the LSTMs, on one token."""
        mixtures = 0 if self.moe is None else 1
        return feed_forward_work(
            self._one_expert(), self.moe, self.dim, layers=1, mixtures=mixtures, experts_per_token=experts_per_token
        )

    def dense_baseline(self, experts_per_token: float | None = None) -> "LSTM | None":
        """The model with one expert of as much work: the paper's MoE-1-Wide, of width K·H.

        None if this model is dense itself, or if its experts have no ``hidden`` width to set.
        """
        if self.moe is None:
            return None
        work = self.feed_forward_work(experts_per_token)
        ffn = dense_equivalent(self._one_expert(), self.dim, layers=1, work=work)
        return None if ffn is None else replace(self, moe=None, ffn=ffn)

    def _one_expert(self) -> ExpertSpec:
        one = self.ffn if self.moe is None else replace(self.moe.experts, count=1)
        assert one is not None
        return one
