"""First-party models: the decoder and its attention, the mixture of 1991 and the net it was measured against."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl
from moekit_models import decoder, gqa, mixture, mla, mlp

MOEKIT_API = 1


@hookimpl
def moekit_models() -> list[Component]:
    """The models of this plugin."""
    return [decoder.COMPONENT, mixture.COMPONENT, mlp.COMPONENT]


@hookimpl
def moekit_attention() -> list[Component]:
    """The attention of this plugin."""
    return [gqa.COMPONENT, mla.COMPONENT]
