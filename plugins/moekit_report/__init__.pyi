from moekit.component import Component
from moekit.training.run.events import StartingRun
from moekit_report.routing import RoutingStatistics as RoutingStatistics

MOEKIT_API: int

def moekit_components() -> list[Component]: ...
def moekit_run_starting(run: StartingRun) -> None: ...
