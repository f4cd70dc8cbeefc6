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

from moekit.files import make_directory

SECONDS = 120.0  # between two writes for readers of a running training


class EventFile:
    """An event file that holds the scalars of one process. Nothing is written before ``write``.

    Args:
        folder: of the event files.
        first_step: TensorBoard hides this and later steps of earlier files in the folder.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.path = (
            folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
        )
        self._size = 0  # bytes of the file that are whole events
        self._new: list[dict[str, Any]] = []
        self._written = time.monotonic()
        self._add(step=first_step, file_version="brain.Event:2")
        self._add(step=first_step, session_log={"status": "START"})

    @property
    def is_due(self) -> bool:
        """Whether a reader of the file has waited long enough."""
        return time.monotonic() - self._written > SECONDS

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Adds a step's values by name."""
        self._add(step=step, summary={"value": [{"tag": name, "simple_value": v} for name, v in values.items()]})

    def write(self) -> None:
        """Appends what was added since the last time. If that fails, the next call does it again.

        Raises:
            OSError: the disk is full, or the like.
        """
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
