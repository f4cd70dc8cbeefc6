"""A folder of Hugging Face's: its configuration, and its safetensors files, of which only headers are in memory.

Nothing is unpickled, and no code of a repository is run. An index cannot name a file outside the folder.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moekit.checkpoints.safetensors_file import TensorFile, bytes_of
from moekit.errors import CheckpointError
from moekit.extras import install
from moekit.files import read_regular
from moekit_hf.fields import FormatError
from moekit_hf.rules import Shape

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LARGEST_JSON = 100_000_000  # bytes; a tokenizer of 200,000 tokens has 20 MB
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
CONVERT = (
    'python -c "from transformers import {1} as A; '
    "A.from_pretrained('{0}', dtype='auto').save_pretrained('{0}-safe')\""
)
BLOCK = 1 << 16  # numbers looked at together
KEPT = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "generation_config.json", "tokenizer.model", "vocab.json", "merges.txt",
)  # fmt: skip
"""Files that an export needs unchanged: the tokenizer, its special tokens and chat template, how to generate."""


class Folder:
    """A folder with ``config.json`` and weights in safetensors.

    Attributes:
        path: of the folder.
        config: the contents of ``config.json``.

    Raises:
        FormatError: it is not such a folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_dir():
            raise FormatError(f"{path} is not a folder\n  expected one with {CONFIG} and {SINGLE}, or its index")
        self.config = read_json(path / CONFIG)
        self._file_of: dict[str, str] | None = None
        self._files: dict[str, TensorFile] = {}

    def shapes(self) -> dict[str, Shape]:
        """The shape of every tensor.

        Raises:
            FormatError: a file is missing, damaged or pickled, or the index and the files differ.
        """
        return {name: tuple(self._entry(name).shape) for name in self._index()}

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor.

        Raises:
            FormatError: it is none that a model has.
        """
        found: torch.dtype = self._entry(name).dtype
        if found not in FLOATS:
            raise FormatError(
                f"{self.path}: {name} has dtype {str(found).removeprefix('torch.')}\n"
                "  expected float32, bfloat16, float16 or float64; quantised weights are not read"
            )
        return found

    def num_bytes(self) -> int:
        """Bytes of all files of weights."""
        return sum((self.path / name).stat().st_size for name in set(self._index().values()))

    def read(self, name: str, offset: Shape, sizes: Shape) -> Tensor:
        """Reads a slice of a tensor, and no other bytes.

        Raises:
            FormatError: the file is damaged, or the slice has a NaN or infinity.
        """
        try:
            out = self._files[self._index()[name]].read(name, offset, sizes)
        except CheckpointError as error:
            raise FormatError(str(error)) from error
        if not is_finite(out):
            what = "NaN" if bool(torch.isnan(out).any()) else "infinity"
            raise FormatError(f"{self.path / self._index()[name]}: {name} has a {what}")
        return out

    def _entry(self, name: str) -> Any:
        return self._file(self._index()[name]).entries[name]

    def _index(self) -> dict[str, str]:
        """The file of every tensor."""
        if self._file_of is None:
            self._file_of = self._read_index()
        return self._file_of

    def _read_index(self) -> dict[str, str]:
        if not (self.path / INDEX).exists():
            if not (self.path / SINGLE).exists():
                raise FormatError(self._no_weights())
            return dict.fromkeys(self._file(SINGLE).entries, SINGLE)
        given = read_json(self.path / INDEX).get("weight_map")
        if not isinstance(given, dict) or not all(isinstance(file, str) for file in given.values()):
            raise FormatError(f"{self.path / INDEX}: it has no weight_map from tensors to files")
        for name, file in given.items():
            if not FILE_NAME.fullmatch(file):
                raise FormatError(
                    f"{self.path / INDEX}: it names '{file}' for {name}\n"
                    "  expected the name of a .safetensors file in this folder"
                )
        for file in sorted(set(given.values())):
            if not (self.path / file).exists():
                raise FormatError(f"{self.path / INDEX}: it names '{file}', which is not in the folder")
            named = {name for name, each in given.items() if each == file}
            held = set(self._file(file).entries)
            if named != held:
                one = min(named ^ held)
                where = f"'{one}' is in the index, but not in it" if one in named else f"it holds '{one}', which is not"
                raise FormatError(f"{self.path / file}: it and the index {INDEX} differ: {where}")
        return given

    def _file(self, name: str) -> TensorFile:
        if name not in self._files:
            try:
                self._files[name] = TensorFile(self.path / name)
            except CheckpointError as error:
                raise FormatError(str(error)) from error
        return self._files[name]

    def _no_weights(self) -> str:
        pickled = sorted(path.name for path in self.path.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        auto = "AutoModelForSeq2SeqLM" if self.config.get("is_encoder_decoder") else "AutoModelForCausalLM"
        if pickled:
            return (
                f"{self.path / pickled[0]} is a pickle, which can run any code when it is read: it is not read\n"
                f"  convert it, if you trust it: {CONVERT.format(self.path, auto)}"
            )
        return f"{self.path} has no weights\n  expected {SINGLE}, or {INDEX} and the files that it names"


def is_finite(tensor: Tensor) -> bool:
    """Whether no number of a contiguous tensor is NaN or infinite: whether some exponent has all bits set.

    Read as integers, the positive ones are then largest among signed, and the negative ones among unsigned integers. In
    blocks that fit into a cache, by one thread: it takes a tenth of the time of ``torch.isfinite``.
    """
    info, bits = torch.finfo(tensor.dtype), bytes_of(tensor)
    signed, unsigned = (np.frombuffer(bits, dtype=f"{kind}{tensor.element_size()}") for kind in "iu")
    mantissa, sign = round(-math.log2(info.eps)), 1 << info.bits - 1
    limit = sign - (1 << mantissa)  # of infinity
    for start in range(0, len(signed), BLOCK):
        block = slice(start, start + BLOCK)
        if int(signed[block].max()) >= limit or int(unsigned[block].max()) >= sign + limit:
            return False
    return True


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Raises:
        FormatError: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(read_regular(path, LARGEST_JSON))
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise FormatError(f"{path} holds a {type(found).__name__}; expected a mapping")
    return found


def located(name: str) -> Path:
    """The folder of a name: itself; or, if ``huggingface_hub`` is installed, a copy of the repository ``owner/name``.

    Raises:
        FormatError: there is no such folder, and no such repository can be fetched.
    """
    path = Path(name)
    if path.is_dir() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return path
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise FormatError(
            f"{name} is not a folder here\n  to fetch a repository of that name: {install('hf')}"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]))
    except Exception as error:  # the library raises its own errors and those of several HTTP clients
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise FormatError(f"{name} is not a folder here, and cannot be fetched: {why}") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, replacing it whole.

    Raises:
        OSError: the disk is full, or the like.
    """
    from moekit.files import replace_text

    text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    replace_text(path, text)
