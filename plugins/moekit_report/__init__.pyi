from moekit.component import Component, Verb
from moekit.training.run.events import StartingRun
from moekit_report.routing import RoutingStatistics as RoutingStatistics

MOEKIT_API: int
VERBS: dict[str, str]

def moekit_components() -> list[Component]: ...
def moekit_verbs() -> list[Verb]: ...
def moekit_run_starting(run: StartingRun) -> None: ...
