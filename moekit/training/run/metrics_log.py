"""The logger of a run: one ``metrics.csv``, a row per step, a column per metric; and what all log files share.

Rows are kept in memory; the whole file is written a few times in a run. So training does not wait for a disk, and a
file is never half-written. A resumed run keeps the rows up to its checkpoint.

No run depends on its logs: training continues if they cannot be written, and a run resumes if they are damaged.
"""

from __future__ import annotations

import csv
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from moekit.files import read_regular, replace_file

Row = dict[str, float]
LARGEST = 1 << 30  # bytes of a metrics file that are read


class LogWrites:
    """Writes log files. One that cannot be written is reported once, and written the next time that is possible.

    Attributes:
        report: prints a line.
    """

    def __init__(self, report: Callable[[str], object] = print) -> None:
        self.report = report
        self._failing: dict[Path, str] = {}

    def attempt(self, path: Path, write: Callable[[], object]) -> None:
        """Calls ``write``, which writes the file ``path`` and may raise ``OSError``."""
        try:
            write()
        except OSError as error:
            if not self._failing:
                why = error.strerror or str(error)
                self.report(f"\ncannot write {path}: {why}\n  training continues; logs are written when this is over")
            self._failing[path] = error.strerror or str(error)
        else:
            if self._failing.pop(path, "") and not self._failing:
                self.report("\nall logs are written again")

    def end(self) -> None:
        """Reports the files that could not be written to the last."""
        for path, why in self._failing.items():
            self.report(f"\n{path} is incomplete: {why}")
        self._failing.clear()


class FileLogger(Logger):
    """A Lightning logger that writes one file, when ``save`` is called: before each checkpoint, and at the end.

    Args:
        path: of the file.
        writes: writes it.
    """

    def __init__(self, path: Path, writes: LogWrites | None = None) -> None:
        super().__init__()
        self.path = path
        self.writes = writes or LogWrites()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.parent.name

    @property
    def version(self) -> str:
        """Empty: a run folder holds one run."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the run folder has the whole spec."""

    @abstractmethod
    def save(self) -> None:
        """Writes the file, if possible."""

    def finalize(self, status: str) -> None:
        """Writes the file a last time."""
        self.save()


class RunLog(FileLogger):
    """The metrics of a run.

    Args:
        path: the metrics file; an existing one is read first.
        last_step: rows of later steps are discarded, because a resumed run trains them again.
        writes: writes the file.

    Attributes:
        rows: by step.
        damage: what could not be read of an existing file; empty if all could.
        begun: whether training has begun; before, the file stays as it is, with the rows of later steps.
    """

    def __init__(self, path: Path, last_step: int = 0, writes: LogWrites | None = None) -> None:
        super().__init__(path, writes)
        rows, self.damage = salvage_metrics(path)
        self.rows: dict[int, Row] = {step: row for step, row in rows.items() if step <= last_step}
        self.begun = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds values to a step's row."""
        assert step is not None
        self.begun = True
        self.rows.setdefault(step, {}).update(metrics)

    @rank_zero_only
    def save(self) -> None:
        """Writes the file, if possible. It is called in training."""
        self.begun = True
        if self.rows:
            self.writes.attempt(self.path, lambda: replace_file(self.path, lambda path: write_metrics(path, self.rows)))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes the file a last time, if training has begun; reports the log files that could not be written."""
        if self.begun:
            self.save()
        self.writes.end()


def write_metrics(path: Path, rows: Mapping[int, Row]) -> None:
    """Writes one row per step and one column per metric; empty where a step has no such metric."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["step", *columns])
        writer.writeheader()
        writer.writerows({"step": step, **rows[step]} for step in sorted(rows))


def read_metrics(path: Path) -> dict[int, Row]:
    """The rows of a metrics file by step; none without a file. Damaged rows are omitted."""
    return salvage_metrics(path)[0]


def salvage_metrics(path: Path) -> tuple[dict[int, Row], str]:
    """The whole rows of a metrics file by step, and what is wrong with the rest; no rows and ``""`` without a file."""
    try:
        lines = read_regular(path, LARGEST).decode("utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        return {}, f"cannot be read: {error.strerror}"
    header, *rest = [_cells(line) for line in lines]
    if rest[-1:] == [[]]:  # after the last line's end
        rest.pop()
    elif rest:
        rest[-1] = []  # it was cut
    if header[:1] != ["step"] or len(set(header)) < len(header):
        return {}, "has no header of metrics"
    rows: dict[int, Row] = {}
    for cells in rest:
        try:
            step, *values = cells
            row = {name: float(value) for name, value in zip(header[1:], values, strict=True) if value}
            rows[int(step)] = row
        except ValueError:
            continue
    if any(a >= b for a, b in pairwise(rows)) or min(rows, default=0) < 0:
        return {}, "has steps that do not ascend"
    lost = len(rest) - len(rows)
    return rows, f"has {lost} damaged line{'' if lost == 1 else 's'} of {len(rest)}" if lost else ""


def _cells(line: str) -> list[str]:
    """The cells of a line of CSV; none if it is damaged."""
    try:
        return next(csv.reader([line.removesuffix("\r")], strict=True), [])
    except csv.Error:
        return []


def lost_rows(damage: str, steps: Iterable[int], logged: int) -> str:
    """What a log lacks, in words; empty if nothing.

    Args:
        damage: what could not be read of it.
        steps: those that could be read.
        logged: the last logged step before the checkpoint.
    """
    last = max(steps, default=0)
    return ", and ".join(filter(None, [damage, f"lacks steps after {last}, up to {logged}" if last < logged else ""]))


def points_of(rows: Mapping[int, Mapping[str, float]], key: str, x: str = "step") -> tuple[list[float], list[float]]:
    """The x and y values of one metric: over steps, or over another column (``seconds``, ``tokens``)."""
    points = [(step, row) for step, row in sorted(rows.items()) if key in row and (x == "step" or x in row)]
    return [float(step) if x == "step" else row[x] for step, row in points], [row[key] for _, row in points]


def tenths(values: Any) -> tuple[Any, Any]:
    """The first and the last tenth of a list or an array, of at least one value."""
    n = max(1, len(values) // 10)
    return values[:n], values[-n:]
