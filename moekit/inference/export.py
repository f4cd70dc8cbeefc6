"""Exporting a trained model's weights to one file, for use without moekit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from moekit.checkpoints.safetensors_file import Digest, write_tensors
from moekit.errors import MoekitError
from moekit.files import replace_file
from moekit.inference.merging import merged, read_slice
from moekit.spec import load, to_plain
from moekit.training.run.folder import RUNS, RunFolder, checkpoint_of
from moekit.training.run.saved import CkptFile, read_any_checkpoint
from moekit.training.run.start import PREFIX


def export(run: str, out: Path | None = None, root: Path = RUNS) -> tuple[Path, Digest, int]:
    """Writes the weights of a run's model as one safetensors file, whatever layout they were saved in.

    Names are those of the model's ``state_dict``. The file's metadata holds the recipe as JSON (``spec``), the step,
    and the version of moekit. Adapted experts (LoRA) are written as plain ones. One tensor is in memory at a time.
    The weights fit ``moekit.build(moekit.load(json.loads(spec)).model)``.

    Args:
        run: a run folder, a checkpoint (also a ``.ckpt`` file of Lightning), or a name, for its latest run in ``root``.
        out: the file; default: ``weights-<step>.safetensors`` in the run's folder, or in that of the ``.ckpt`` file.
        root: folder of all runs.

    Returns:
        The file, its digest, and the number of elements in it (parameters and buffers).

    Raises:
        CheckpointError: there is no such run, or its checkpoint is damaged.
        MoekitError: the file exists already.
    """
    saved = read_any_checkpoint(checkpoint_of(run, root))
    step = int(saved.plain["global_step"])
    if out is None:
        folder = saved.path.parent if isinstance(saved, CkptFile) else RunFolder.find(str(saved.path)).path
        out = folder / f"weights-{step:08d}.safetensors"
    if out.exists():
        raise MoekitError(f"{out} exists already\n  give another with --out, or remove it")
    state = {name: each for name, each in saved.plain["state_dict"].items() if name.startswith(PREFIX)}
    recipe, held = merged(
        load(saved.plain["hyper_parameters"]["spec"]), {name.removeprefix(PREFIX): each for name, each in state.items()}
    )
    metadata = {
        "format": "pt",
        "moekit": str(saved.plain["moekit"]["version"]),
        "step": str(step),
        "spec": json.dumps(to_plain(recipe, full_names=True)),
    }
    meta = {name: torch.empty(each.shape, dtype=each.dtype, device="meta") for name, each in held.items()}

    def pieces(name: str) -> Iterator[Tensor]:
        shape = tuple(meta[name].shape)
        yield read_slice(held[name], (0,) * len(shape), shape)

    digests: list[Digest] = []
    replace_file(out, lambda path: digests.append(write_tensors(path, meta, metadata, pieces)))
    return out, digests[0], sum(tensor.numel() for tensor in meta.values())
