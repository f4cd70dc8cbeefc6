from moekit.component import Component, Kind, Verb
from moekit_reproduce.papers.jacobs1991 import Jacobs1991 as Jacobs1991
from moekit_reproduce.study import Arm as Arm
from moekit_reproduce.study import ClaimSpec as ClaimSpec
from moekit_reproduce.study import Panel as Panel
from moekit_reproduce.study import Prediction as Prediction
from moekit_reproduce.study import Study as Study

MOEKIT_API: int

def moekit_kinds() -> list[Kind]: ...
def moekit_components() -> list[Component]: ...
def moekit_verbs() -> list[Verb]: ...
