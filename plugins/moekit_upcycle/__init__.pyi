from moekit.component import Component, Verb
from moekit_upcycle.upcycle import Upcycle as Upcycle
from moekit_upcycle.upcycle.module import UpcycleConverter as UpcycleConverter

MOEKIT_API: int

def moekit_components() -> list[Component]: ...
def moekit_verbs() -> list[Verb]: ...
