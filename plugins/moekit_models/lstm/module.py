"""Embedding, LSTM, mixture, LSTM, head, with dropout and a residual at each layer. Reference: ``naive.py``."""

from __future__ import annotations

from typing import cast, final

from torch import Tensor, nn

from moekit.contracts import Cache, ExpertBank, Init, LayerDims, LayerReport, Model, ModelOutput, Source
from moekit.moe_layer import MoELayer, run_on_all
from moekit.products import Linear
from moekit.registry import build
from moekit.seeds import random_seed
from moekit.weights import init_weights
from moekit_models.lstm import LSTM


def one_bias_lstm(dim: int, hidden: int) -> nn.LSTM:
    """An LSTM with one bias for each gate, as in the papers, that runs in torch's fused kernels.

    ``nn.LSTM`` adds two biases where one is enough. The second stays 0 and is not trained, so that neither optimizers
    nor counts of parameters include it.

    Args:
        dim: width of input and output.
        hidden: cells; if they are more than ``dim``, the output is ``W_hr h`` (Sak et al. 2014), which is also the
            recurrent input of the next time step.

    Returns:
        A module ``x_BSD -> (h_BSD, state)``.
    """
    lstm = nn.LSTM(dim, hidden, proj_size=dim if hidden > dim else 0, batch_first=True)
    second = cast(nn.Parameter, lstm.bias_hh_l0)
    nn.init.zeros_(second)
    second.requires_grad_(False)
    return lstm


def run_on(lstm: nn.LSTM, x_BSD: Tensor, cache: Cache) -> Tensor:
    """``h_BSD``, starting from the state in the cache, or from zeros; then the cache keeps the last state."""
    h_BSD, cache.kept = lstm(x_BSD, cache.kept or None)
    return cast(Tensor, h_BSD)


@final
class LSTMModel(Model):
    """``x + dropout(layer(x))`` for LSTM, mixture (with a sigmoid) and LSTM, over embeddings with dropout.

    Source: Shazeer et al. 2017, Appendix C.1. One mixture serves all time steps, and gets all positions of a batch at
    once (section 3.1: "convolutionality"). Each text starts from a state of zeros.

    Weights are initialised from N(0, ``init_std``²), biases with 0; routers may differ (gates that start at 0).
    """

    def __init__(self, spec: LSTM) -> None:
        super().__init__()
        self.spec, seed = spec, random_seed()
        hidden = spec.hidden or spec.dim
        self.embedding = nn.Embedding(spec.vocab, spec.dim)
        self.lower = one_bias_lstm(spec.dim, hidden)
        self.moe = None if spec.moe is None else MoELayer.from_spec(spec.moe, spec.dim)
        self.ffn: ExpertBank | None
        self.ffn = None if spec.ffn is None else build(spec.ffn, LayerDims(dim=spec.dim, num_experts=1))
        self.upper = one_bias_lstm(spec.dim, hidden)
        self.dropout = nn.Dropout(spec.dropout)
        self.head = Linear(spec.dim, spec.vocab, bias=False)
        init_weights(self, Init(std=spec.init_std), seed)

    def forward(self, inputs: Tensor, *, valid: Tensor | None = None) -> ModelOutput:
        """Logits of the next token at every position; the mixture's report is under ``moe``.

        Args:
            inputs: ``tokens_BS``, int64.
            valid: bool ``[B, S]``, False for padding, which must come last in a sequence.
        """
        return self.decode(inputs, Cache(), valid=valid)

    def start_cache(self, source: Source | None = None) -> Cache | None:
        """An empty cache: both LSTMs start from zeros."""
        return Cache()

    def decode(self, inputs: Tensor, cache: Cache, *, valid: Tensor | None = None) -> ModelOutput:
        """Logits at the positions after those in the cache; arguments as of ``forward``."""
        x_BSD = self.dropout(self.embedding(inputs))
        x_BSD = x_BSD + self.dropout(run_on(self.lower, x_BSD, cache.at("lower")))
        y_BSD, reports = self._between(x_BSD, valid, inputs)
        x_BSD = x_BSD + self.dropout(y_BSD.sigmoid())
        x_BSD = x_BSD + self.dropout(run_on(self.upper, x_BSD, cache.at("upper")))
        return ModelOutput(y=self.head(x_BSD), reports=reports)

    def embeddings(self) -> tuple[nn.Parameter | None, nn.Parameter | None]:
        """The input embedding and the head's matrix."""
        return cast(nn.Parameter, self.embedding.weight), cast(nn.Parameter, self.head.weight)

    def _between(
        self, x_BSD: Tensor, valid_BS: Tensor | None, tokens_BS: Tensor
    ) -> tuple[Tensor, dict[str, LayerReport]]:
        """The mixture or the expert between the LSTMs, at every position alone."""
        if self.moe is not None:
            y_BSD, report = self.moe(x_BSD, valid=valid_BS, tokens=tokens_BS)
            return y_BSD, {"moe": report}
        assert self.ffn is not None
        return run_on_all(self.ffn, x_BSD.flatten(0, 1)).view_as(x_BSD), {}
