"""First-party data: vowels measured in 1952, text, source-target pairs made of text, and translations."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl
from moekit_data import labelled_text, local_text, span_corruption, text_files, translations, vowels

MOEKIT_API = 1


@hookimpl
def moekit_data() -> list[Component]:
    """The data of this plugin."""
    return [
        labelled_text.COMPONENT,
        local_text.COMPONENT,
        span_corruption.COMPONENT,
        text_files.COMPONENT,
        translations.COMPONENT,
        vowels.COMPONENT,
    ]
