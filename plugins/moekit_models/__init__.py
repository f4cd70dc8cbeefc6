"""First-party models: decoder, encoder-decoder and their attention, the LSTM model of 2017, the mixture of 1991."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl
from moekit.lazy import from_stub

MOEKIT_API = 2
__getattr__, __dir__, __all__ = from_stub(__name__, __file__)


@hookimpl
def moekit_components() -> list[Component]:
    """The components of this plugin."""
    return [
        Component(
            kind="attention",
            name="gqa",
            spec="moekit_models.gqa:GQA",
            target="moekit_models.gqa.module:GroupedQueryAttention",
            summary="causal attention with rotary positions; heads may share keys and values",
            paper="Ainslie et al. 2023",
        ),
        Component(
            kind="attention",
            name="mla",
            spec="moekit_models.mla:MLA",
            target="moekit_models.mla.module:MultiHeadLatentAttention",
            summary="causal attention with keys and values from one small latent a token, and a shared rotary key",
            paper="DeepSeek-V2 2024",
        ),
        Component(
            kind="attention",
            name="relative",
            spec="moekit_models.relative:Relative",
            target="moekit_models.relative.module:RelativeAttention",
            summary="multi-head attention with a learned bias by distance, in buckets that widen with it",
            paper="Raffel et al. 2020, T5",
        ),
        Component(
            kind="model",
            name="decoder",
            spec="moekit_models.decoder:Decoder",
            target="moekit_models.decoder.module:DecoderModel",
            summary="a decoder transformer, each layer dense or a mixture of experts; multi-token prediction",
            paper="Vaswani et al. 2017; DeepSeek-V3 2024 (multi-token prediction)",
        ),
        Component(
            kind="model",
            name="encoder_decoder",
            spec="moekit_models.encoder_decoder:EncoderDecoder",
            target="moekit_models.encoder_decoder.module:EncoderDecoderModel",
            summary="an encoder-decoder transformer, each layer of both stacks dense or a mixture of experts",
            paper="Vaswani et al. 2017; T5 2020; GShard 2020, Switch Transformer 2021, ST-MoE 2022 (mixtures)",
        ),
        Component(
            kind="model",
            name="lstm",
            spec="moekit_models.lstm:LSTM",
            target="moekit_models.lstm.module:LSTMModel",
            summary="two LSTMs with a mixture of experts between them, applied at every position",
            paper="Shazeer et al. 2017, Outrageously Large Neural Networks (arXiv 1701.06538)",
        ),
        Component(
            kind="model",
            name="mixture",
            spec="moekit_models.mixture:Mixture",
            target="moekit_models.mixture.module:MixtureModel",
            summary="one layer of experts on plain cases, blended by a gate",
            paper="Jacobs et al. 1991",
        ),
        Component(
            kind="model",
            name="mlp",
            spec="moekit_models.mlp:MLP",
            target="moekit_models.mlp.module:MLPModel",
            summary="a net with one hidden layer of logistic units and logistic outputs",
            paper="Rumelhart et al. 1986",
        ),
    ]
