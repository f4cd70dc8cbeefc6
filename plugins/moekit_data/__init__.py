"""First-party data: vowels of 1952, text, and translations."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl
from moekit_data import local_text, text_files, translations, vowels

MOEKIT_API = 1


@hookimpl
def moekit_data() -> list[Component]:
    """The data of this plugin."""
    return [local_text.COMPONENT, text_files.COMPONENT, translations.COMPONENT, vowels.COMPONENT]
