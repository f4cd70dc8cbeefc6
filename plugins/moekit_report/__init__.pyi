from collections.abc import Iterable

from moekit.component import Component, RecipeFile, Verb
from moekit.training.run.hooks import StartingRun
from moekit_report.diffing import Change as Change
from moekit_report.diffing import diff as diff
from moekit_report.routing import RoutingStatistics as RoutingStatistics

MOEKIT_API: int
VERBS: dict[str, str]

def moekit_components() -> list[Component]: ...
def moekit_recipes() -> Iterable[RecipeFile]: ...
def moekit_verbs() -> list[Verb]: ...
def moekit_run_starting(run: StartingRun) -> None: ...
