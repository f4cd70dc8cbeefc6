"""Checkpoint files: written whole or not at all, and read as plain data.

A file is written beside its place under another name, flushed to the disk, and moved into place in one step, so a
process killed at any moment leaves the old file or the new one, never half of one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from moekit.errors import CheckpointError


class AtomicCheckpointIO(TorchCheckpointIO):
    """A Lightning checkpoint plugin: ``Trainer(plugins=[AtomicCheckpointIO()])``. Local files only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Writes to a temporary file in the same folder, then replaces ``path``."""
        replace_file(Path(path), lambda temporary: torch.save(checkpoint, temporary))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Has ``write`` fill a temporary file beside ``path``, then moves it to ``path`` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint that ``LitMoE`` wrote: plain data and tensors, on the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, or no checkpoint of moekit.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}\n  a run writes its first after its first validation")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"cannot read the checkpoint {path}: it is truncated, damaged or no checkpoint\n"
            f"  {': '.join([type(error).__name__, *str(error).splitlines()[:1]])}"
        ) from error
    if not isinstance(contents, dict) or "moekit" not in contents or "spec" not in contents.get("hyper_parameters", {}):
        raise CheckpointError(f"{path} is no checkpoint of a moekit run (no 'moekit' part, or no spec in it)")
    return contents


def refuse_other_model(path: Path, saved: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    """Refuses to go on from a checkpoint of another model.

    Args:
        path: the checkpoint, for the message.
        saved: the plain spec in it.
        spec: the plain spec to go on with.

    Raises:
        CheckpointError: naming the first keys that differ.
    """
    found = [
        (f"{part}.{key}" if key else part, was, now)
        for part in ("model", "objective")
        for key, was, now in differences(saved.get(part), spec.get(part))
    ]
    for part, key in (("optimizer", "use"), ("start", "update")):  # what the optimizer's state is of
        was, now = ((tree.get(part) or {}).get(key) for tree in (saved, spec))
        if was != now:
            found.append((f"{part}.{key}", was, now))
    if found:
        lines = [f"  {key}: {was!r} in the checkpoint, {now!r} now" for key, was, now in found[:5]]
        raise CheckpointError(f"{path} cannot go on: it holds another model\n" + "\n".join(lines))


def differences(a: Any, b: Any, at: str = "") -> list[tuple[str, Any, Any]]:
    """Where two plain trees differ: (path, value in ``a``, value in ``b``)."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = [*a, *(key for key in b if key not in a)]
        return [d for key in keys for d in differences(a.get(key), b.get(key), f"{at}.{key}" if at else str(key))]
    return [] if a == b else [(at, a, b)]
