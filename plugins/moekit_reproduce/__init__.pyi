from moekit.component import Component, Kind, Verb
from moekit_reproduce.papers.aux_free import AuxFree as AuxFree
from moekit_reproduce.papers.deepseek_moe import DeepSeekMoE as DeepSeekMoE
from moekit_reproduce.papers.deepseek_v2 import DeepSeekV2 as DeepSeekV2
from moekit_reproduce.papers.deepseek_v3 import DeepSeekV3 as DeepSeekV3
from moekit_reproduce.papers.glam import GLaM as GLaM
from moekit_reproduce.papers.gshard import GShard as GShard
from moekit_reproduce.papers.jacobs1991 import Jacobs1991 as Jacobs1991
from moekit_reproduce.papers.shazeer2017 import Shazeer2017 as Shazeer2017
from moekit_reproduce.papers.st_moe import STMoE as STMoE
from moekit_reproduce.papers.switch import Switch as Switch
from moekit_reproduce.study import Arm as Arm
from moekit_reproduce.study import ClaimSpec as ClaimSpec
from moekit_reproduce.study import Panel as Panel
from moekit_reproduce.study import Prediction as Prediction
from moekit_reproduce.study import Study as Study

MOEKIT_API: int

def moekit_kinds() -> list[Kind]: ...
def moekit_components() -> list[Component]: ...
def moekit_verbs() -> list[Verb]: ...
