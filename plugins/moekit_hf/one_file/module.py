"""Writes the weights of a run's model to one file, for use without moekit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from moekit.checkpoints.safetensors_file import Digest, write_tensors
from moekit.contracts import Exporter
from moekit.errors import MoekitError
from moekit.files import replace_file
from moekit.spec import to_plain
from moekit.training.run.folder import RunFolder
from moekit.training.run.saved import CkptFile, read_any_checkpoint
from moekit_hf.merging import merged_model, read_slice
from moekit_hf.one_file import OneFile


@final
class OneFileExporter(Exporter):
    """One safetensors file, whatever layout the weights were saved in.

    Names are those of the model's ``state_dict``. The file's metadata holds the recipe as JSON (``spec``), the step,
    and the version of moekit. Adapted experts (LoRA) are written as plain ones. One tensor is in memory at a time.
    The weights fit ``moekit.build(moekit.load(json.loads(spec)).model)``.
    """

    def __init__(self, spec: OneFile) -> None:
        self.spec = spec

    def usual_place(self, checkpoint: Path) -> Path:
        """``weights-<step>.safetensors`` in the run's folder, or in that of the ``.ckpt`` file."""
        saved = read_any_checkpoint(checkpoint)
        folder = saved.path.parent if isinstance(saved, CkptFile) else RunFolder.find(str(saved.path)).path
        return folder / f"weights-{int(saved.plain['global_step']):08d}.safetensors"

    def export(self, checkpoint: Path, out: Path) -> Sequence[str]:
        """Writes the file.

        Raises:
            CheckpointError: the checkpoint is damaged.
            MoekitError: the file exists already.
        """
        if out.exists():
            raise MoekitError(f"{out} exists already\n  give another, or remove it")
        saved = read_any_checkpoint(checkpoint)
        recipe, held = merged_model(saved)
        metadata = {
            "format": "pt",
            "moekit": str(saved.plain["moekit"]["version"]),
            "step": str(saved.plain["global_step"]),
            "spec": json.dumps(to_plain(recipe, full_names=True)),
        }
        meta = {name: torch.empty(each.shape, dtype=each.dtype, device="meta") for name, each in held.items()}

        def pieces(name: str) -> Iterator[Tensor]:
            shape = tuple(meta[name].shape)
            yield read_slice(held[name], (0,) * len(shape), shape)

        digests: list[Digest] = []
        replace_file(out, lambda path: digests.append(write_tensors(path, meta, metadata, pieces)))
        numbers = sum(tensor.numel() for tensor in meta.values())
        return [f"{numbers:,} numbers, {digests[0].size:,} bytes, sha256 {digests[0].sha256}", str(out)]
