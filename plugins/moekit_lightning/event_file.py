"""TensorBoard's event files: scalars, histograms, pictures and texts, appended without a thread.

The writer of the tensorboard package writes in a thread of its own, which ends with a traceback when the disk is full.
To wait for it is then to wait for ever.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_only

from moekit.files import make_directory
from moekit.spec.tree import write
from moekit.training.run.metrics_log import FileLogger, LogWrites

SECONDS = 120.0  # between two writes for readers of a running training


class EventFile(FileLogger):
    """A Lightning logger that appends to an event file, whenever a reader has waited long enough.

    ``experiment`` is the logger itself, with methods of ``torch.utils.tensorboard.SummaryWriter``.

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
        self._add_values(step, *({"tag": name, "simple_value": value} for name, value in metrics.items()))

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Adds the recipe as a text."""
        self.add_text("recipe", f"```yaml\n{write(dict(params))}```")

    @property
    def experiment(self) -> EventFile:
        """What writes histograms, pictures and texts."""
        return self

    def add_histogram_raw(
        self,
        tag: str,
        min: float,
        max: float,
        num: float,
        sum: float,
        sum_squares: float,
        bucket_limits: Sequence[float],
        bucket_counts: Sequence[float],
        global_step: int | None = None,
    ) -> None:
        """Adds a histogram by its bars, as ``SummaryWriter`` does."""
        values = {"min": min, "max": max, "num": num, "sum": sum, "sum_squares": sum_squares}
        bars = {"bucket_limit": list(bucket_limits), "bucket": list(bucket_counts)}
        self._add_values(global_step, {"tag": tag, "histo": values | bars})

    def add_image(
        self, tag: str, img_tensor: np.ndarray, global_step: int | None = None, *, dataformats: str = "HWC"
    ) -> None:
        """Adds a picture: uint8, height by width by red, green, blue.

        Raises:
            ValueError: its dimensions are said to be in another order.
        """
        from matplotlib.image import imsave

        if dataformats != "HWC":
            raise ValueError(f"a picture's dimensions are {dataformats}; expected HWC")
        encoded = io.BytesIO()
        imsave(encoded, img_tensor, format="png")
        height, width, _ = img_tensor.shape
        image = {"height": height, "width": width, "colorspace": 3, "encoded_image_string": encoded.getvalue()}
        self._add_values(global_step, {"tag": tag, "image": image})

    def add_text(self, tag: str, text_string: str, global_step: int | None = None) -> None:
        """Adds a text in Markdown."""
        string = {"dtype": "DT_STRING", "tensor_shape": {"dim": [{"size": 1}]}, "string_val": [text_string.encode()]}
        plugin = {"plugin_data": {"plugin_name": "text"}}
        self._add_values(global_step, {"tag": f"{tag}/text_summary", "metadata": plugin, "tensor": string})

    def _add_values(self, step: int | None, *values: Mapping[str, Any]) -> None:
        if not self._size and not self._new:
            self._add(step=self._first_step, file_version="brain.Event:2")
            self._add(step=self._first_step, session_log={"status": "START"})
        self._add(step=step, summary={"value": list(values)})
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
