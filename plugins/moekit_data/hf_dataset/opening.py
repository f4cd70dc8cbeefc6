"""Opens a data set by the ``datasets`` library; reads its documents, each with the state of the stream before it."""

from __future__ import annotations

import copy
import glob
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from moekit.errors import DataError
from moekit_data.hf_dataset import HfDataset
from moekit_data.text_files.files import searched_folder
from moekit_data.text_files.reading import text_in

PIECE, PIECES = 1 << 14, 16
"""Bytes of a piece of a local file, and how many of them are compared when a run is resumed."""

State = dict[str, Any]
"""Which document of a stream is the next, as ``datasets`` notes it; plain values."""


def library() -> Any:
    """The module ``datasets``.

    Raises:
        DataError: it is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(
            "hf_dataset needs the package datasets\n  expected it installed: pip install 'moekit[datasets]'"
        ) from None
    return datasets


def open_split(spec: HfDataset, split: str, lanes: int = 1, lane: int = 0) -> Any:
    """A stream of the documents of a part, or of one lane of it.

    If the files can be divided evenly, a lane reads its own files; else it reads all and takes every n-th document.

    Args:
        spec: names the data set.
        split: the part.
        lanes: into how many the documents are divided.
        lane: which of them.

    Raises:
        DataError: there is no such data set or part.
    """
    found = _load(spec, split)
    from datasets.distributed import split_dataset_by_node  # only now: without datasets, _load says what to install

    with _errors_named(spec, split):
        if not spec.streaming:
            found = found.to_iterable_dataset(num_shards=lanes if len(found) >= lanes else 1)
        return split_dataset_by_node(found, rank=lane, world_size=lanes)


def shared_part(spec: HfDataset) -> str:
    """The part of the data set of which ``split`` and ``validation_split`` both have rows; "" if they share none.

    Both may be sums of parts, and slices of them where nothing is streamed.

    Raises:
        DataError: there is no such data set or part.
    """
    if spec.validation_split is None:
        return ""
    parts = _load(spec, None)
    sizes = {name: 1 if spec.streaming else len(part) for name, part in parts.items()}
    instruction = library().ReadInstruction

    def rows(split: str) -> list[Any]:
        whole = "+".join(sizes) if split == "all" else split
        with _errors_named(spec, split):
            return list(instruction.from_spec(whole).to_absolute(sizes))

    for trains, validates in product(rows(spec.split), rows(spec.validation_split)):
        first, end = max(trains.from_, validates.from_), min(trains.to, validates.to)
        if trains.splitname == validates.splitname and first < end:
            return str(trains.splitname)
    return ""


def _load(spec: HfDataset, split: str | None) -> Any:
    """A part of the data set, or all parts by name."""
    datasets = library()
    for pattern in spec.data_files or ():
        if "://" not in pattern and not glob.glob(pattern, recursive=True):
            raise DataError(
                f"no such file: {pattern}{searched_folder(Path(pattern))}\n  expected a file (option data.data_files)"
            )
    with _errors_named(spec, split):
        return datasets.load_dataset(
            spec.path, spec.name, data_files=spec.data_files, split=split, streaming=spec.streaming,
            revision=spec.revision,
        )  # fmt: skip


@contextmanager
def _errors_named(spec: HfDataset, split: str | None) -> Iterator[None]:
    """Raises what ``datasets`` raises as a ``DataError`` that names the data set."""
    try:
        yield
    except (OSError, ValueError, StopIteration, library().exceptions.DatasetsError) as error:
        first = next(iter(str(error).splitlines()), "no rows in its files")
        what = f"split '{split}' of {spec.path}" if split else spec.path
        raise DataError(
            f"datasets cannot open {what}: {first}\n"
            "  expected a name on the hub, a folder, or a format with data.data_files"
        ) from error


def local_files(spec: HfDataset) -> list[Path]:
    """The files of a data set that is not on the hub."""
    patterns = spec.data_files or ([f"{spec.path}/**"] if Path(spec.path).is_dir() else [])
    found = (Path(file) for each in patterns for file in glob.glob(each, recursive=True))
    return sorted(file for file in found if file.is_file())


def sample_of(path: Path) -> str:
    """A checksum of a local file: of its start, its end and pieces between at equal distances; of all if it is small.

    A copy has the same one.

    Raises:
        DataError: it cannot be read.
    """
    size, digest = path.stat().st_size, hashlib.sha256()
    try:
        with path.open("rb") as file:
            for number in range(PIECES):
                file.seek(number * max(size - PIECE, (PIECES - 1) * PIECE) // (PIECES - 1))
                digest.update(file.read(PIECE))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}\n  expected a readable file") from error
    return digest.hexdigest()


def documents(spec: HfDataset, split: str, stream: Any, state: State | None = None) -> Iterator[tuple[State, bytes]]:
    """The documents of a stream from a state on, without blank ones, each with the state in which it is the next.

    Raises:
        DataError: a document has no text, or the files cannot be read.
    """
    datasets, number = library(), 0
    if state is not None:
        stream.load_state_dict(copy.deepcopy(state))

    def malformed(found: str) -> DataError:
        since = "" if state is None else " after the place of resuming"
        return DataError(
            f"{spec.path}, split '{split}', document {number:,}{since}: {found}\n"
            f"  expected text in the column '{spec.text_key}' (option data.text_key)"
        )

    # Before the first row, a stream that was put into a state still reports the state of its start.
    begins = copy.deepcopy(stream.state_dict() if state is None else state)
    try:
        for row in stream:
            number += 1
            text = text_in(row, spec.text_key, malformed)
            if text and not text.isspace():
                yield begins, text
            begins = copy.deepcopy(stream.state_dict())
    except DataError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"cannot read {spec.path}, after document {number:,} of split '{split}': {error}") from error
