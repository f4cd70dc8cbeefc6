"""Experts made visible: statistics of routing during training, reports in HTML, comparisons, sweeps, a live view.

Every run records its routing in ``routing/`` in its folder. ``docs/seeing_experts.md`` describes the columns and the
verbs.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from moekit.component import Component, RecipeFile, Verb, recipes_in
from moekit.hookspecs import hookimpl
from moekit.lazy import from_stub

TYPE_CHECKING = False
if TYPE_CHECKING:
    from moekit.training.run.hooks import StartingRun

MOEKIT_API = 2
VERBS = {
    "config.diff": "compare two specs, or a spec with its overrides",
    "ls.runs": "list your runs, with their state and result",
    "report": "write a page about the experts of a run",
    "compare": "compare runs, seeds pooled",
    "eval": "score a trained model by domain",
    "watch": "watch a run in the terminal",
    "sweep": "train a recipe over options and seeds",
}
__getattr__, __dir__, __all__ = from_stub(__name__, __file__)


@hookimpl
def moekit_components() -> list[Component]:
    """The components of this plugin."""
    return [
        Component(
            kind="callback",
            name="routing",
            spec="moekit_report.routing:RoutingStatistics",
            target="moekit_report.routing.module:routing_statistics",
            summary="records load, entropy, drops and changes of routing; every run has it",
        )
    ]


@hookimpl
def moekit_recipes() -> Iterable[RecipeFile]:
    """The recipe ``atlas``."""
    return recipes_in(Path(__file__).with_name("recipes"))


@hookimpl
def moekit_verbs() -> list[Verb]:
    """The verbs of this plugin."""
    return [
        Verb(name=name, target=f"moekit_report.verbs.{name.rpartition('.')[2]}", summary=summary)
        for name, summary in VERBS.items()
    ]


@hookimpl
def moekit_run_starting(run: StartingRun) -> None:
    """Adds the callback ``routing`` to a run, unless it is given one; and to a trial of a sweep, its pruning."""
    from moekit_report.routing.module import RoutingRecorder

    if not any(isinstance(each, RoutingRecorder) for each in run.given):
        run.callbacks.append(RoutingRecorder(writes=run.logs))
    if (run.folder.parent.parent / "sweep.json").is_file():
        from moekit_report.pruning import pruning_of

        if (pruning := pruning_of(run.folder)) is not None:
            run.callbacks.append(pruning)
