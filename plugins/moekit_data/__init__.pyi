from moekit.component import Component
from moekit_data.labelled_text import LabelledText as LabelledText
from moekit_data.labelled_text.module import LabelledTextData as LabelledTextData
from moekit_data.local_text import LocalText as LocalText
from moekit_data.local_text.module import LocalTextData as LocalTextData
from moekit_data.span_corruption import SpanCorruption as SpanCorruption
from moekit_data.span_corruption.module import SpanCorruptionData as SpanCorruptionData
from moekit_data.text_files import TextFiles as TextFiles
from moekit_data.text_files.module import TextFilesData as TextFilesData
from moekit_data.translations import Translations as Translations
from moekit_data.translations.module import TranslationData as TranslationData
from moekit_data.vowels import Vowels as Vowels
from moekit_data.vowels.module import VowelData as VowelData

MOEKIT_API: int

def moekit_components() -> list[Component]: ...
