"""The tensors of a run's state, by their paths, compared bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def tensors(tree: Any, at: str = "") -> dict[str, Tensor]:
    """The tensors of a tree by their paths."""
    if isinstance(tree, Tensor):
        return {at: tree}
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    return {path: t for key, value in items for path, t in tensors(value, f"{at}.{key}").items()}


def different(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, str]:
    """By path, how tensors differ: in one bit at least; a failure that is seen once must say where it began."""
    missing = dict.fromkeys(found.keys() ^ expected.keys(), "in one of the two")
    both = {name: (tensor, expected[name]) for name, tensor in found.items() if name in expected}
    return missing | {name: _difference(a, b) for name, (a, b) in both.items() if a.dtype != b.dtype or not a.equal(b)}


def _difference(a: Tensor, b: Tensor) -> str:
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"{a.dtype} {list(a.shape)}, expected {b.dtype} {list(b.shape)}"
    at = (a != b).nonzero()
    one, two = a.double()[tuple(at[0])].item(), b.double()[tuple(at[0])].item()
    return f"{len(at)} of {a.numel()} elements, first at {at[0].tolist()}: {one!r}, expected {two!r}"


def assert_same_tensors(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], more_than: int, keep: Path | None = None
) -> None:
    """Bit for bit, in any order; ``more_than``: guards against comparing nothing; ``keep``: a file for both if not."""
    assert len(found) > more_than
    if (wrong := different(found, expected)) and keep is not None:
        torch.save({"found": dict(found), "expected": dict(expected)}, keep)
    assert wrong == {}, keep
