"""A nested tree of plain values and tensors, as JSON and named tensors.

JSON has no tuples, no keys but text, no NaN and no bytes: what it lacks is written as an object with one key that
begins with ``$``. A tensor is ``{"$tensor": name}``, and its name is the path of keys that leads to it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from moekit.errors import CheckpointError
from moekit.shards.shard import TensorShard, shard_of_dtensor, unsharded


@dataclass(frozen=True)
class Encoded:
    """A tree taken apart.

    Args:
        plain: what goes into JSON.
        boxes: the tensors, by name.
        pieces: names of those that came as pieces, a ``Box`` or a ``DTensor``: other ranks hold the rest.
    """

    plain: Any
    boxes: Mapping[str, TensorShard]
    pieces: frozenset[str]


def encode(tree: Any) -> Encoded:
    """Takes a tree apart.

    Containers are copied, tensors are not. A tensor that stands in several places is named, and written, once.

    Args:
        tree: dicts, lists and tuples of None, bool, int, float, str, bytes, tensors, ``DTensor``s and boxes.

    Raises:
        CheckpointError: anything else in it; the message says where.
    """
    encoder = _Encoder()
    plain = encoder.encode(tree, ())
    return Encoded(plain, encoder.boxes, frozenset(encoder.pieces))


class _Encoder:
    def __init__(self) -> None:
        self.boxes: dict[str, TensorShard] = {}
        self.pieces: set[str] = set()
        self.seen: dict[tuple[Any, ...], str] = {}

    def encode(self, value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, Tensor | TensorShard):
            return {"$tensor": self.tensor(value, path)}
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return str(value)
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
        if isinstance(value, bytes):
            return {"$bytes": base64.b64encode(value).decode("ascii")}
        if isinstance(value, Mapping):
            items = [(key, self.encode(each, (*path, str(key)))) for key, each in value.items()]
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return dict(items)
            return {"$pairs": [[self.encode(key, (*path, "a key")), each] for key, each in items]}
        if isinstance(value, list | tuple):
            each = [self.encode(item, (*path, str(i))) for i, item in enumerate(value)]
            return each if isinstance(value, list) else {"$tuple": each}
        raise CheckpointError(
            f"cannot save a {type(value).__module__}.{type(value).__qualname__} at {'.'.join(path)}\n"
            "  expected plain values (None, bool, int, float, str, bytes, dict, list, tuple) and tensors"
        )

    def tensor(self, value: Tensor | TensorShard, path: tuple[str, ...]) -> str:
        identity = _identity(value)
        if identity in self.seen:
            return self.seen[identity]
        base = name = ".".join(path) or "tensor"
        again = 1
        while name in self.boxes:
            again += 1
            name = f"{base}#{again}"
        if isinstance(value, TensorShard):
            self.boxes[name] = TensorShard(name, value.global_shape, value.offset, value.tensor.detach())
        elif isinstance(value, DTensor):
            self.boxes[name] = shard_of_dtensor(name, value.detach())  # type: ignore[arg-type]
        else:
            self.boxes[name] = unsharded(name, value.detach())
        if isinstance(value, TensorShard | DTensor):
            self.pieces.add(name)
        self.seen[identity] = name
        return name


def _identity(value: Tensor | TensorShard) -> tuple[Any, ...]:
    """Equal for tensors that are one, and for the same piece of one: tied weights."""
    tensor, place = (
        (value.tensor, (value.global_shape, value.offset)) if isinstance(value, TensorShard) else (value, ())
    )
    if isinstance(tensor, DTensor) or not tensor.numel():
        return (id(value),)
    memory = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
    return *memory, tuple(tensor.shape), tensor.stride(), tensor.dtype, place


def decode(plain: Any, tensor: Callable[[str], Any]) -> Any:
    """The tree again.

    Args:
        plain: what ``encode`` gave, read back from JSON.
        tensor: what is to stand for the tensor of a name.

    Raises:
        CheckpointError: an object with a ``$`` that ``encode`` does not write.
    """
    if isinstance(plain, list):
        return [decode(item, tensor) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if len(plain) != 1 or not (key := next(iter(plain))).startswith("$"):
        return {key: decode(value, tensor) for key, value in plain.items()}
    value = plain[key]
    if key == "$tensor":
        return tensor(value)
    if key == "$tuple":
        return tuple(decode(item, tensor) for item in value)
    if key == "$pairs":
        return {decode(name, tensor): decode(each, tensor) for name, each in value}
    if key == "$float":
        return float(value)
    if key == "$bytes":
        return base64.b64decode(value)
    raise CheckpointError(f"{key!r} is no part of this format: written by a newer moekit?")


def fill(tree: Any, value_of: Callable[[Any], Any], kind: type) -> Any:
    """The tree with ``value_of(leaf)`` for each leaf of one type."""
    if isinstance(tree, kind):
        return value_of(tree)
    if isinstance(tree, dict):
        return {key: fill(value, value_of, kind) for key, value in tree.items()}
    if isinstance(tree, list):
        return [fill(value, value_of, kind) for value in tree]
    return tuple(fill(value, value_of, kind) for value in tree) if isinstance(tree, tuple) else tree
