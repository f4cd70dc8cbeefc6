"""TensorBoard's event files: scalars, appended without a thread.

The writer of the tensorboard package writes in a thread of its own, which ends with a traceback when the disk is full.
To wait for it is then to wait for ever.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from moekit.files import make_directory
from moekit.training.run.metrics_log import FileLogger, LogWrites

SECONDS = 120.0  # between two writes for readers of a running training


class EventFile(FileLogger):
    """A Lightning logger that appends scalars to an event file, whenever a reader has waited long enough.

    Args:
        folder: of the event files.
        first_step: TensorBoard hides this and later steps of earlier files in the folder.
        writes: writes the file.
    """

    def __init__(self, folder: Path, first_step: int = 1, writes: LogWrites | None = None) -> None:
        stamp = f"{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
        super().__init__(folder / f"events.out.tfevents.{stamp}", writes)
        self._size = 0  # bytes of the file that are whole events
        self._new: list[dict[str, Any]] = []
        self._first_step = first_step
        self._written = time.monotonic()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds a step's values by name."""
        if not self._size and not self._new:
            self._add(step=self._first_step, file_version="brain.Event:2")
            self._add(step=self._first_step, session_log={"status": "START"})
        values = [{"tag": name, "simple_value": value} for name, value in metrics.items()]
        self._add(step=step, summary={"value": values})
        if time.monotonic() - self._written > SECONDS:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Appends what was logged since the last time, if possible. If that fails, the next call does it again."""
        self.writes.attempt(self.path, self._append)

    def _append(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # slow to import
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._written = time.monotonic()
        if not self._new:
            return
        records = io.BytesIO()
        for fields in self._new:
            RecordWriter(records).write(Event(**fields).SerializeToString())
        make_directory(self.path.parent)
        with self.path.open("r+b" if self._size else "wb") as file:
            file.truncate(self._size)  # a failed write may have left half an event
            file.seek(self._size)
            file.write(records.getvalue())
        self._size += records.tell()
        self._new.clear()

    def _add(self, **fields: Any) -> None:
        self._new.append({"wall_time": time.time(), **fields})
