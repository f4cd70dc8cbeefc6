"""First-party callbacks, loggers and strategies; progress, events and plots of every run."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl
from moekit.lazy import from_stub

TYPE_CHECKING = False  # importing typing slows the start of every command
if TYPE_CHECKING:
    from pathlib import Path

    from moekit.training.run.hooks import EndedRun, ReportRow, StartingRun

MOEKIT_API = 2
__getattr__, __dir__, __all__ = from_stub(__name__, __file__)


@hookimpl
def moekit_components() -> list[Component]:
    """The components of this plugin."""
    return [
        Component(
            kind="callback",
            name="ema",
            spec="moekit_lightning.averages:EMA",
            target="moekit_lightning.averages.module:ema",
            summary="validates and saves an exponential moving average of the weights",
            paper="Polyak and Juditsky 1992",
        ),
        Component(
            kind="callback",
            name="swa",
            spec="moekit_lightning.averages:SWA",
            target="moekit_lightning.averages.module:swa",
            summary="validates and saves the mean of the weights in the last part of the run",
            paper="Izmailov et al. 2018, arXiv:1803.05407",
        ),
        Component(
            kind="logger",
            name="wandb",
            spec="moekit_lightning.wandb:WandB",
            target="moekit_lightning.wandb.module:wandb_logger",
            summary="logs to Weights & Biases, online or offline",
        ),
        Component(
            kind="logger",
            name="mlflow",
            spec="moekit_lightning.mlflow:MLflow",
            target="moekit_lightning.mlflow.module:mlflow_logger",
            summary="logs to MLflow, on a server or in a file",
        ),
        Component(
            kind="strategy",
            name="ddp",
            spec="moekit_lightning.ddp:DDP",
            target="moekit_lightning.ddp.module:ddp",
            summary="every rank holds the whole model; gradients are averaged",
            paper="Li et al. 2020, arXiv:2006.15704",
        ),
        Component(
            kind="strategy",
            name="sharded",
            spec="moekit_lightning.sharded:Sharded",
            target="moekit_lightning.sharded.module:sharded",
            summary="shards weights, gradients and optimizer state; experts over groups of ranks",
            paper="Lepikhin et al. 2020, arXiv:2006.16668; Rajbhandari et al. 2020, arXiv:1910.02054",
        ),
    ]


@hookimpl
def moekit_run_starting(run: StartingRun) -> None:
    """Has every run show its progress and, if it can, write TensorBoard's events."""
    from moekit.extras import lacking
    from moekit_lightning.event_file import EventFile
    from moekit_lightning.progress import progress_of

    if run.shows_progress:
        run.callbacks.append(progress_of(run))
    if not lacking("tensorboard"):
        run.loggers.append(EventFile(run.folder / "tensorboard", run.upto + 1, run.logs))


@hookimpl
def moekit_run_ended(run: EndedRun) -> list[Path | ReportRow]:
    """Draws the plots of every run; says what is missing, and which command installs it."""
    from moekit.extras import install, lacking
    from moekit.training.run.hooks import ReportRow

    missing = {"plots": lacking("matplotlib"), "tensorboard": lacking("tensorboard")}
    rows = [
        ReportRow(extra, f"none, without {names[0]}: {install(extra)}")
        for extra, names in missing.items()
        if names and run.failure is None
    ]
    if missing["plots"]:
        return [*rows]
    from moekit_lightning.plots import draw_plots

    return [*rows, *draw_plots(run)]
