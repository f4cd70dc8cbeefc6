"""The logger of a run: one ``metrics.csv`` (a row per step, a column per metric), and TensorBoard events.

Rows are kept in memory; the whole file is written a few times in a run. So training does not wait for a disk, and a
file is never half-written. A resumed run keeps the rows up to its checkpoint.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from moekit.files import replace_file

Row = dict[str, float]


class RunLog(Logger):
    """A Lightning logger for one run folder.

    Args:
        csv_file: the metrics file; an existing one is read first.
        tensorboard: folder of the event files; None for none.
        upto: rows of later steps are discarded, because a resumed run trains them again.
    """

    def __init__(self, csv_file: Path, tensorboard: Path | None = None, last_step: int = 0) -> None:
        super().__init__()
        self.csv_file = csv_file
        self.tensorboard = tensorboard
        self.rows: dict[int, Row] = {step: row for step, row in read_metrics(csv_file).items() if step <= last_step}
        self._last_step = last_step
        self._writer: Any = None

    @property
    def name(self) -> str:
        """The run folder's name."""
        return self.csv_file.parent.name

    @property
    def version(self) -> str:
        """Empty: a run folder holds one run."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the run folder has the whole spec."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds values to a step's row."""
        assert step is not None
        self.rows.setdefault(step, {}).update(metrics)
        if self.tensorboard is not None:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter  # slow to import

                self._writer = SummaryWriter(str(self.tensorboard), purge_step=self._last_step + 1)
            for key, value in metrics.items():
                self._writer.add_scalar(key, value, step)

    @rank_zero_only
    def write(self) -> None:
        """Writes the file."""
        if self.rows:
            replace_file(self.csv_file, lambda path: write_metrics(path, self.rows))
        if self._writer is not None:
            self._writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes the file and closes the event files."""
        self.write()
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def write_metrics(path: Path, rows: Mapping[int, Row]) -> None:
    """Writes one row per step and one column per metric; empty where a step has no such metric."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["step", *columns])
        writer.writeheader()
        writer.writerows({"step": step, **rows[step]} for step in sorted(rows))


def read_metrics(path: Path) -> dict[int, Row]:
    """The rows of a metrics file by step; none without a file."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {
            int(row["step"]): {key: float(value) for key, value in row.items() if key != "step" and value}
            for row in csv.DictReader(file)
        }


def points_of(rows: Mapping[int, Row], key: str, x: str = "step") -> tuple[list[float], list[float]]:
    """The x and y values of one metric: over steps, or over another column (``seconds``, ``tokens``)."""
    points = [(step, row) for step, row in sorted(rows.items()) if key in row and (x == "step" or x in row)]
    return [float(step) if x == "step" else row[x] for step, row in points], [row[key] for _, row in points]
