from moekit.component import Component
from moekit_data.accuracy import Accuracy as Accuracy
from moekit_data.accuracy.module import AccuracyEvaluator as AccuracyEvaluator
from moekit_data.bleu import Bleu as Bleu
from moekit_data.bleu.module import BleuEvaluator as BleuEvaluator
from moekit_data.bpe import BytePairs as BytePairs
from moekit_data.bpe.module import BytePairTokenizer as BytePairTokenizer
from moekit_data.bytes import Bytes as Bytes
from moekit_data.bytes.module import ByteTokenizer as ByteTokenizer
from moekit_data.chat import Chat as Chat
from moekit_data.chat.module import ChatData as ChatData
from moekit_data.decision_regions import DecisionRegions as DecisionRegions
from moekit_data.decision_regions.module import DecisionRegionsEvaluator as DecisionRegionsEvaluator
from moekit_data.hf_dataset import HfDataset as HfDataset
from moekit_data.hf_dataset.module import HfDatasetData as HfDatasetData
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
