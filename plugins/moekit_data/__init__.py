"""First-party data, the tokenizers of its text, and the evaluators of models trained on it.

Data: vowels measured in 1952, text, source-target pairs made of text, and translations.
"""

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
            name="hf_dataset",
            spec="moekit_data.hf_dataset:HfDataset",
            target="moekit_data.hf_dataset.module:HfDatasetData",
            summary="a data set of Hugging Face's, from the hub or from local files, read as a stream",
        ),
        Component(
            kind="data",
            name="chat",
            spec="moekit_data.chat:Chat",
            target="moekit_data.chat.module:ChatData",
            summary="conversations of JSON lines, of which the messages of some roles are learnt",
        ),
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
        Component(
            kind="tokenizer",
            name="bytes",
            spec="moekit_data.bytes:Bytes",
            target="moekit_data.bytes.module:ByteTokenizer",
            summary="a token is a byte of UTF-8",
            default=True,
        ),
        Component(
            kind="tokenizer",
            name="bpe",
            spec="moekit_data.bpe:BytePairs",
            target="moekit_data.bpe.module:BytePairTokenizer",
            summary="byte pairs, learnt from the training text",
            paper="Sennrich et al. 2016, arXiv:1508.07909",
        ),
        Component(
            kind="evaluator",
            name="accuracy",
            spec="moekit_data.accuracy:Accuracy",
            target="moekit_data.accuracy.module:AccuracyEvaluator",
            summary="the share of targets that the model gives exactly",
        ),
        Component(
            kind="evaluator",
            name="bleu",
            spec="moekit_data.bleu:Bleu",
            target="moekit_data.bleu.module:BleuEvaluator",
            summary="BLEU and chrF of greedy translations, by language; a table and a plot of them",
            paper="Papineni et al. 2002; Popovic 2015",
        ),
        Component(
            kind="evaluator",
            name="decision_regions",
            spec="moekit_data.decision_regions:DecisionRegions",
            target="moekit_data.decision_regions.module:DecisionRegionsEvaluator",
            summary="a picture of where a model of vowels decides for what, and which expert leads where",
            paper="Jacobs et al. 1991",
        ),
    ]
