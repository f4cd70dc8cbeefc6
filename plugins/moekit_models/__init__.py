"""First-party models: decoder, encoder-decoder and their attention, the LSTM model of 2017, the mixture of 1991."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl
from moekit_models import decoder, encoder_decoder, gqa, lstm, mixture, mla, mlp, relative

MOEKIT_API = 1


@hookimpl
def moekit_models() -> list[Component]:
    """The models of this plugin."""
    return [decoder.COMPONENT, encoder_decoder.COMPONENT, lstm.COMPONENT, mixture.COMPONENT, mlp.COMPONENT]


@hookimpl
def moekit_attention() -> list[Component]:
    """The attention of this plugin."""
    return [gqa.COMPONENT, mla.COMPONENT, relative.COMPONENT]
