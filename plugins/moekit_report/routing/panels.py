"""What loggers get of a run's routing, besides its files: numbers, histograms and pictures of each layer, a report.

Every logger gets the numbers, except ``metrics.csv``: ``routing/`` in the same folder has them. Those that can show
more get it: a logger with a writer of TensorBoard, Weights & Biases, and MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger

from moekit.extras import lacking
from moekit.training.run.metrics_log import RunLog
from moekit_report.page import html_of
from moekit_report.routing.recording import PARTS, Rows
from moekit_report.routing.sums import MEANS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = 512  # of a histogram; Weights & Biases takes no more
LOAD = "routing/load"


def loads_of(rows: Rows, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The load ``[E]`` of each layer, of the rows of one step."""
    experts = rows["experts"]
    return {names[i]: experts["load"][experts["layer"] == i] for i in dict.fromkeys(experts["layer"].tolist())}


def numbers_of(rows: Rows, names: Sequence[str]) -> dict[str, float]:
    """The statistics of each layer, of the rows of one step: ``routing/val/blocks.1.ffn/max_violation``.

    Shares of pairs are of those that were chosen. A statistic that a layer has not (NaN) is omitted.
    """
    layers, loads, out = rows["layers"], loads_of(rows, names), dict[str, float]()
    for row, i in enumerate(layers["layer"].tolist()):
        load_E, value = loads[names[i]], {name: float(column[row]) for name, column in layers.items()}
        pairs, tokens = max(value["pairs"] + value["unsent_pairs"], 1), max(value["tokens"], 1)
        found = {
            "max_violation": float(load_E.max() / max(load_E.mean(), 1e-9)) - 1 if load_E.any() else 0.0,
            "dead_experts": float((load_E == 0).sum()),
            "dropped_pairs": value["dropped_pairs"] / pairs,
            "dropped_tokens": value["dropped_tokens"] / tokens,
            **{name: value[name] for name in (*MEANS, "changed")},
        }
        at = f"routing/{PARTS[int(value['part'])]}/{names[i]}"
        out |= {f"{at}/{name}": each for name, each in found.items() if not np.isnan(each)}
    return out


def picture_of(loads: Mapping[str, np.ndarray], step: int) -> Figure:
    """The load of each expert (columns) of each layer (rows), as multiples of a fair share."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    widest = max(map(len, loads.values()))
    share_XE = np.full((len(loads), widest), np.nan)
    for row, load_E in enumerate(loads.values()):
        share_XE[row, : len(load_E)] = load_E / max(load_E.mean(), 1e-9)
    figure = Figure(figsize=(8.0, 1.3 + 0.28 * len(loads)), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(share_XE, cmap="cividis", vmin=0, vmax=3, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(loads)), list(loads), fontsize=8)
    axes.set_xlabel("expert", fontsize=8)
    axes.set_title(f"load over the validation set, step {step:,}", loc="left", fontsize=9)
    bar = figure.colorbar(image, ax=axes, ticks=[0, 1, 2, 3])
    bar.ax.set_yticklabels(["0", "fair share", "2 times", "3 times or more"], fontsize=8)
    return figure


class Door(Protocol):
    """What a logger can show besides numbers."""

    def histogram(self, name: str, load_E: np.ndarray, step: int) -> None:
        """Shows a load with a bar for each expert."""

    def picture(self, name: str, figure: Figure, step: int) -> None:
        """Shows a picture."""

    def report(self, contents: Mapping[str, Any]) -> None:
        """Shows the report: the page, or the findings where no page can be shown."""


def door_of(logger: Logger) -> Door | None:
    """What a logger can show besides numbers; None for numbers alone."""
    if isinstance(logger, WandbLogger):
        return WandbDoor(logger)
    if isinstance(logger, MLFlowLogger):
        return MLflowDoor(logger)
    writer = getattr(logger, "experiment", None)
    if all(hasattr(writer, name) for name in ("add_histogram_raw", "add_image", "add_text")):
        return TensorBoardDoor(writer)
    return None


def show_numbers(logger: Logger, numbers: Mapping[str, float], step: int) -> None:
    """Gives a logger the statistics, unless it is the run's own file of metrics."""
    if not isinstance(logger, RunLog):
        logger.log_metrics(dict(numbers), step)


def show_loads(logger: Logger, loads: Mapping[str, np.ndarray], step: int) -> None:
    """Gives a logger a histogram of each layer, and a picture of all if matplotlib is installed."""
    if loads and (door := door_of(logger)) is not None:
        for name, load_E in loads.items():
            door.histogram(f"{LOAD}/{name}", load_E, step)
        if not lacking("matplotlib"):
            door.picture(LOAD, picture_of(loads, step), step)


def show_report(contents: Mapping[str, Any], logger: Logger) -> None:
    """Gives a logger a report, by its contents."""
    if (door := door_of(logger)) is not None:
        door.report(contents)


def pixels(figure: Figure) -> np.ndarray:
    """A picture as uint8, height by width by red, green, blue."""
    canvas: Any = figure.canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def bars_of(load_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The heights and the edges of at most ``BARS`` bars: an expert, or some neighbours, each."""
    some = -(-len(load_E) // BARS)
    starts = np.arange(0, len(load_E), some)
    return np.add.reduceat(load_E, starts), np.append(starts, len(load_E)) - 0.5


class TensorBoardDoor:
    """A writer with the methods of ``torch.utils.tensorboard.SummaryWriter``."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def histogram(self, name: str, load_E: np.ndarray, step: int) -> None:
        """Shows a load with a bar for each expert."""
        counts, edges = bars_of(load_E)
        at = (edges[1:] + edges[:-1]) / 2
        self.writer.add_histogram_raw(
            name,
            min=float(edges[0]),
            max=float(edges[-1]),
            num=float(counts.sum()),
            sum=float((counts * at).sum()),
            sum_squares=float((counts * at**2).sum()),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.astype(float).tolist(),
            global_step=step,
        )

    def picture(self, name: str, figure: Figure, step: int) -> None:
        """Shows a picture."""
        self.writer.add_image(name, pixels(figure), global_step=step, dataformats="HWC")

    def report(self, contents: Mapping[str, Any]) -> None:
        """Shows the findings: TensorBoard shows no page."""
        lines = [f"- **{each['level']}**: {each['text']} {each['key']}".rstrip() for each in contents["findings"]]
        self.writer.add_text("report", "\n".join(lines))


class WandbDoor:
    """Weights & Biases, online or offline."""

    def __init__(self, logger: WandbLogger) -> None:
        self.logger = logger

    def histogram(self, name: str, load_E: np.ndarray, step: int) -> None:
        """Shows a load with a bar for each expert."""
        import wandb

        self.logger.log_metrics({name: wandb.Histogram(np_histogram=bars_of(load_E))}, step)

    def picture(self, name: str, figure: Figure, step: int) -> None:
        """Shows a picture."""
        import wandb

        self.logger.log_metrics({name: wandb.Image(pixels(figure))}, step)

    def report(self, contents: Mapping[str, Any]) -> None:
        """Shows the page."""
        import wandb

        self.logger.log_metrics({"report": wandb.Html(html_of(contents), inject=False)})


class MLflowDoor:
    """MLflow, which keeps files of a run: a load is a JSON file."""

    def __init__(self, logger: MLFlowLogger) -> None:
        self.logger = logger

    def histogram(self, name: str, load_E: np.ndarray, step: int) -> None:
        """Keeps a load."""
        self.logger.experiment.log_dict(self.logger.run_id, {"load": load_E.tolist()}, f"{name}/step-{step:08d}.json")

    def picture(self, name: str, figure: Figure, step: int) -> None:
        """Keeps a picture."""
        self.logger.experiment.log_figure(self.logger.run_id, figure, f"{name}/step-{step:08d}.png")

    def report(self, contents: Mapping[str, Any]) -> None:
        """Keeps the page."""
        self.logger.experiment.log_text(self.logger.run_id, html_of(contents), "report.html")
