"""First-party data: vowels measured in 1952, text, source-target pairs made of text, and translations."""

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
            kind="data",
            name="labelled_text",
            spec="moekit_data.labelled_text:LabelledText",
            target="moekit_data.labelled_text.module:LabelledTextData",
            summary="a window of text, and the name of its domain: a task to fine-tune on",
            paper="Raffel et al. 2020, arXiv:1910.10683",
        ),
        Component(
            kind="data",
            name="local_text",
            spec="moekit_data.local_text:LocalText",
            target="moekit_data.local_text.module:LocalTextData",
            summary="code and prose by domain, from files every installation has",
        ),
        Component(
            kind="data",
            name="span_corruption",
            spec="moekit_data.span_corruption:SpanCorruption",
            target="moekit_data.span_corruption.module:SpanCorruptionData",
            summary="text in which sentinels replace spans, and the spans: T5's pre-training",
            paper="Raffel et al. 2020, arXiv:1910.10683",
        ),
        Component(
            kind="data",
            name="text_files",
            spec="moekit_data.text_files:TextFiles",
            target="moekit_data.text_files.module:TextFilesData",
            summary="your own text: a file, a folder by domain, or JSON lines",
        ),
        Component(
            kind="data",
            name="translations",
            spec="moekit_data.translations:Translations",
            target="moekit_data.translations.module:TranslationData",
            summary="English into up to 96 languages: short texts of Django's catalogs, or your own pairs",
        ),
        Component(
            kind="data",
            name="vowels",
            spec="moekit_data.vowels:Vowels",
            target="moekit_data.vowels.module:VowelData",
            summary="four vowels by two formants, 75 speakers: the cases of 1991",
            paper="Peterson and Barney 1952; Jacobs et al. 1991",
        ),
    ]
