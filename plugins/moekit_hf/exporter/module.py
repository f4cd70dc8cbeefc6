"""Writes a run's model as a folder of Hugging Face's: one tensor, or one expert of it, is in memory at a time."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from moekit.checkpoints.safetensors_file import write_tensors
from moekit.contracts import Data, Exporter
from moekit.files import make_directory, sync_directory
from moekit.registry import build
from moekit.spec import to_plain
from moekit.spec.recipe import Recipe
from moekit.training.run.imported import imported_files
from moekit.training.run.saved import read_any_checkpoint
from moekit_hf.exporter import HuggingFace
from moekit_hf.fields import INERT, FormatError
from moekit_hf.folder import CONFIG, INDEX, KEPT, SINGLE, is_finite, read_json, write_json
from moekit_hf.format import FormatSpec
from moekit_hf.matching import OMITTED, format_for
from moekit_hf.merging import merged_model, read_slice
from moekit_hf.rules import Shape
from moekit_hf.weights import Table


@final
class HuggingFaceExporter(Exporter):
    """The configuration, weights in safetensors with an index, and the tokenizer's files if the model was imported."""

    def __init__(self, spec: HuggingFace) -> None:
        self.spec = spec

    def export(self, checkpoint: Path, out: Path) -> Sequence[str]:
        """Writes the folder; it appears when it is complete.

        Raises:
            FormatError: no family has this model, or the folder exists.
            CheckpointError: the checkpoint is damaged.
        """
        if out.exists():
            raise FormatError(f"{out} exists already\n  give another folder, or remove it")
        saved = read_any_checkpoint(checkpoint)
        recipe, held = merged_model(saved)
        model: Any = to_plain(recipe.model)
        name, family = format_for(recipe.model, self.spec.family)
        shapes: dict[str, Shape] = {name: tuple(each.shape) for name, each in held.items()}
        table = Table(f"format '{name}'", family.rules(model), shapes, OMITTED)

        def read(ours: str, offset: Shape, sizes: Shape) -> Tensor:
            return read_slice(held[ours], offset, sizes)

        dtypes = {theirs: self._dtype(links[0].ours, held) for theirs, links in table.theirs.items()}
        came = imported_files(checkpoint, recipe.start)
        source = {file.name: file for file in came}
        partial = out.with_name(f".{out.name}.tmp")
        shutil.rmtree(partial, ignore_errors=True)
        make_directory(partial)
        try:
            files = self._write_weights(partial, table, dtypes, read)
            data = saved.plain["moekit"]["data"]
            inert = inert_fields(source[CONFIG]) if CONFIG in source else token_ids(recipe, data)
            write_json(partial / CONFIG, self._config(family, model, inert, dtypes))
            kept = [file for file in KEPT if file in source]
            for file in kept:
                shutil.copyfile(source[file], partial / file)
            write_tokenizer(partial, data)
            make_directory(out.parent)
            partial.rename(out)
            sync_directory(out.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        omitted = sorted({prefix.rstrip(".") for prefix in OMITTED for ours in held if ours.startswith(prefix)})
        return [
            f"{name}: {len(table.theirs):,} tensors in {files} file{'s' if files > 1 else ''}"
            + (f", with {', '.join(kept)}" if kept else ""),
            *([f"omitted, since transformers has no place for it: {', '.join(omitted)}"] if omitted else []),
            f'{out}\n  from transformers import {family.auto}; {family.auto}.from_pretrained("{out}")',
        ]

    def _dtype(self, ours: str, held: Mapping[str, Any]) -> torch.dtype:
        of: torch.dtype = held[ours].dtype
        if not self.spec.dtype or ".balancers." in ours:
            return of
        wanted: torch.dtype = getattr(torch, self.spec.dtype)
        return wanted

    def _write_weights(self, folder: Path, table: Table, dtypes: Mapping[str, torch.dtype], read: Any) -> int:
        """Writes files of at most ``shard_gb``, in the order of the table, and an index if there are several."""
        shapes = {theirs: links[0].theirs_shape for theirs, links in table.theirs.items()}
        sizes = {theirs: math.prod(shape) * dtypes[theirs].itemsize for theirs, shape in shapes.items()}
        files: list[list[str]] = [[]]
        room = limit = self.spec.shard_gb * 1e9
        for theirs, size in sizes.items():
            if files[-1] and size > room:
                files.append([])
                room = limit
            files[-1].append(theirs)
            room -= size
        count = len(files)
        where: dict[str, str] = {}
        for i, names in enumerate(files, start=1):
            file = SINGLE if count == 1 else f"model-{i:05d}-of-{count:05d}.safetensors"
            write_tensors(
                folder / file,
                {theirs: torch.empty(shapes[theirs], dtype=dtypes[theirs], device="meta") for theirs in names},
                {"format": "pt"},
                lambda theirs: (converted(theirs, each, dtypes[theirs]) for each in table.their_pieces(theirs, read)),
            )
            where |= dict.fromkeys(names, file)
        if count > 1:
            write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where})
        return count

    def _config(
        self, family: FormatSpec, model: Any, inert: Mapping[str, Any], dtypes: Mapping[str, torch.dtype]
    ) -> dict[str, Any]:
        """The family's fields over those that change nothing, such as the end token."""
        counts = [list(dtypes.values()).count(each) for each in dtypes.values()]
        dtype = list(dtypes.values())[counts.index(max(counts))]
        return {
            **inert,
            **family.config(model),
            "model_type": family.model_type,
            "architectures": [family.architecture],
            "dtype": str(dtype).removeprefix("torch."),
        }


def converted(name: str, piece: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor, or one expert of it, in another dtype.

    Raises:
        FormatError: a number is too large for that dtype, or none.
    """
    out = piece.to(dtype)
    if dtype != piece.dtype and not is_finite(out):
        held = f"{str(dtype).removeprefix('torch.')} holds numbers up to {torch.finfo(dtype).max:g}"
        raise FormatError(
            f"{name} has the number {float(piece.abs().max()):g}, but {held}\n  expected dtype=bfloat16 or float32"
        )
    return out


def inert_fields(config: Path) -> dict[str, Any]:
    """The fields of an imported model that change nothing; its tensors have a dtype of their own."""
    return {k: v for k, v in read_json(config).items() if k in INERT and k != "torch_dtype"}


def token_ids(recipe: Recipe, state: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens of a run that was not imported: for a missing one, ``transformers`` takes a released model's.

    There is one, the end. It also starts and pads the targets of pairs.

    Args:
        recipe: of the run.
        state: of its data.
    """
    end = None
    if recipe.data is not None:
        data: Data = build(recipe.data)
        data.load_state(state)
        end = None if data.tokenizer is None else data.tokenizer.end
    if recipe.model.takes == "pairs":
        return {"bos_token_id": None, **dict.fromkeys(("decoder_start_token_id", "eos_token_id", "pad_token_id"), end)}
    return {"bos_token_id": None, "eos_token_id": end, "pad_token_id": None}


def write_tokenizer(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes ``tokenizer.json`` from the state of a run's data, if the folder has none and the state is such a file."""
    text = state.get("tokenizer_json", state.get("bpe"))
    if not isinstance(text, str) or (folder / "tokenizer.json").exists():
        return
    described = json.loads(text)
    if described.get("decoder") is None:  # that of the recipe's own byte pairs, which moekit decodes itself
        described["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    write_json(folder / "tokenizer.json", described)
