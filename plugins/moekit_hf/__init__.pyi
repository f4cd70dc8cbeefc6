from moekit.component import Component, Kind, RecipeFile, Verb
from moekit_hf.exporter import HuggingFace as HuggingFace
from moekit_hf.exporter.module import HuggingFaceExporter as HuggingFaceExporter
from moekit_hf.families.mixtral import Mixtral as Mixtral
from moekit_hf.fields import Fields as Fields
from moekit_hf.fields import FormatError as FormatError
from moekit_hf.format import FormatSpec as FormatSpec
from moekit_hf.format import as_it_is as as_it_is
from moekit_hf.importing import import_folder as import_folder
from moekit_hf.importing import inspect as inspect
from moekit_hf.rules import Ignored as Ignored
from moekit_hf.rules import Rule as Rule
from moekit_hf.tokenizer import TokenizerFile as TokenizerFile
from moekit_hf.tokenizer.module import FileTokenizer as FileTokenizer

MOEKIT_API: int

def moekit_components() -> list[Component]: ...
def moekit_kinds() -> list[Kind]: ...
def moekit_recipes() -> list[RecipeFile]: ...
def moekit_verbs() -> list[Verb]: ...
