from moekit.component import Component, Kind, RecipeFile, Verb
from moekit_hf.exporter import HuggingFace as HuggingFace
from moekit_hf.exporter.module import HuggingFaceExporter as HuggingFaceExporter
from moekit_hf.families.deepseek_v2 import DeepseekV2 as DeepseekV2
from moekit_hf.families.deepseek_v3 import DeepseekV3 as DeepseekV3
from moekit_hf.families.dots1 import Dots1 as Dots1
from moekit_hf.families.glm4_moe import Glm4Moe as Glm4Moe
from moekit_hf.families.gpt_oss import GptOss as GptOss
from moekit_hf.families.llama import Llama as Llama
from moekit_hf.families.llama4 import Llama4 as Llama4
from moekit_hf.families.minimax_m2 import MiniMaxM2 as MiniMaxM2
from moekit_hf.families.mistral import Mistral as Mistral
from moekit_hf.families.mixtral import Mixtral as Mixtral
from moekit_hf.families.olmo2 import Olmo2 as Olmo2
from moekit_hf.families.olmoe import Olmoe as Olmoe
from moekit_hf.families.phimoe import Phimoe as Phimoe
from moekit_hf.families.qwen2 import Qwen2 as Qwen2
from moekit_hf.families.qwen2_moe import Qwen2Moe as Qwen2Moe
from moekit_hf.families.qwen3 import Qwen3 as Qwen3
from moekit_hf.families.qwen3_moe import Qwen3Moe as Qwen3Moe
from moekit_hf.families.switch_transformers import SwitchTransformers as SwitchTransformers
from moekit_hf.fields import Fields as Fields
from moekit_hf.fields import FormatError as FormatError
from moekit_hf.format import FormatSpec as FormatSpec
from moekit_hf.format import as_it_is as as_it_is
from moekit_hf.importing import import_folder as import_folder
from moekit_hf.importing import inspect as inspect
from moekit_hf.one_file import OneFile as OneFile
from moekit_hf.one_file.module import OneFileExporter as OneFileExporter
from moekit_hf.rules import Ignored as Ignored
from moekit_hf.rules import Rule as Rule
from moekit_hf.tokenizer import TokenizerFile as TokenizerFile
from moekit_hf.tokenizer.module import FileTokenizer as FileTokenizer

MOEKIT_API: int

def moekit_components() -> list[Component]: ...
def moekit_kinds() -> list[Kind]: ...
def moekit_recipes() -> list[RecipeFile]: ...
def moekit_verbs() -> list[Verb]: ...
