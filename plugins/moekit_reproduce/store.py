"""Finished measurements: files that are written completely or not at all, so a killed command resumes. Torch-free."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moekit.errors import MoekitError
from moekit.files import discard_partial, make_directory, read_regular, replace_text

LARGEST = 10_000_000
"""Bytes of a measurement, at most."""


class Store:
    """The measurements of one paper.

    Args:
        folder: made if necessary. Files that a killed command left half written are removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_directory(folder)
        discard_partial(folder)

    def path(self, label: str, what: Mapping[str, Any]) -> Path:
        """The file of a measurement. Its name has a checksum of everything in ``what``."""
        text = json.dumps(what, sort_keys=True, default=str)
        slug = re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-")
        return self.folder / f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def read(self, path: Path) -> dict[str, Any] | None:
        """A finished measurement; None if there is none.

        Raises:
            MoekitError: the file is damaged.
        """
        if not path.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(read_regular(path, LARGEST))
            return {**found, "values": {name: _number(value) for name, value in found["values"].items()}}
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise MoekitError(f"{path} is not a measurement: {error}\n  delete it, and it is measured again") from error

    def write(self, path: Path, measured: Mapping[str, Any]) -> None:
        """Keeps a measurement.

        Raises:
            OSError: the disk is full, or the like.
        """
        write_json(path, measured)


def write_json(path: Path, data: Any) -> None:
    """Replaces a file by JSON, atomically; numbers that are not finite become text.

    Raises:
        OSError: the disk is full, or the like.
    """
    text = json.dumps(_plain(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    replace_text(path, text)


def _plain(data: Any) -> Any:
    if isinstance(data, float) and not math.isfinite(data):
        return str(data)
    if isinstance(data, Mapping):
        return {str(key): _plain(value) for key, value in data.items()}
    return [_plain(value) for value in data] if isinstance(data, list | tuple) else data


def _number(value: Any) -> Any:
    return float(value) if value in ("inf", "-inf", "nan") else value
