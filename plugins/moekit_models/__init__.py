"""First-party models: the decoder and its attention, the LSTM model of 2017, the mixture of 1991 and its rival."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl
from moekit_models import decoder, gqa, lstm, mixture, mla, mlp

MOEKIT_API = 1


@hookimpl
def moekit_models() -> list[Component]:
    """The models of this plugin."""
    return [decoder.COMPONENT, lstm.COMPONENT, mixture.COMPONENT, mlp.COMPONENT]


@hookimpl
def moekit_attention() -> list[Component]:
    """The attention of this plugin."""
    return [gqa.COMPONENT, mla.COMPONENT]
