"""Cache: keys, values and other state of earlier positions, so that decoding a token need not recompute them."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64
"""The least number of positions by which a full buffer grows."""


class Cache:
    """What a module remembers of B sequences between calls. The caller holds it; the module itself has no state.

    A module either adds rows for each position (``extend``: keys and values) or stores tensors of constant size
    (``kept``). Its submodules have caches of their own (``at``).

    Attributes:
        kept: tensors that do not grow, such as the state of a recurrence or the keys and values of a source. Empty at
            first; the module replaces them.
    """

    def __init__(self) -> None:
        self.kept: tuple[Tensor, ...] = ()
        self._rows: tuple[Tensor, ...] = ()  # buffers, longer than the positions in them
        self._length = 0
        self._parts: dict[str, Cache] = {}

    @property
    def length(self) -> int:
        """The number of positions that have rows here: the index of the next one."""
        return self._length

    def at(self, name: str) -> Cache:
        """The cache of a submodule, by name; a new one on first use."""
        return self._parts.setdefault(name, Cache())

    def extend(self, *rows: Tensor) -> tuple[Tensor, ...]:
        """Appends the rows of new positions.

        Args:
            rows: tensors ``[..., S, X]`` of S new positions. Their number and all sizes but S are the same in every
                call.

        Returns:
            These tensors for all positions, ``[..., length, X]``. They are views that the next call may overwrite, but
            copies if a row requires a gradient.

        Raises:
            ValueError: the rows do not match earlier ones.
        """
        self._check(rows)
        start, end = self._length, self._length + rows[0].shape[-2]
        if torch.is_grad_enabled() and any(r.requires_grad for r in (*rows, *self._rows)):
            # Writing into the buffer would overwrite what autograd has saved for backward.
            held = tuple(r.narrow(-2, 0, start) for r in self._rows)
            self._rows = tuple(torch.cat(pair, dim=-2) for pair in zip(held, rows, strict=True)) if held else rows
        else:
            if not self._rows or end > self._rows[0].shape[-2]:
                held = tuple(r.narrow(-2, 0, start) for r in self._rows)
                room = end + max(end // 2, BLOCK)
                self._rows = tuple(r.new_empty(*r.shape[:-2], room, r.shape[-1]) for r in rows)
                for row, before in zip(self._rows, held, strict=False):
                    row.narrow(-2, 0, start).copy_(before)
            for row, new in zip(self._rows, rows, strict=True):
                row.narrow(-2, start, end - start).copy_(new)
        self._length = end
        return tuple(r.narrow(-2, 0, end) for r in self._rows)

    def numel(self) -> int:
        """The number of elements stored, including submodules; unused buffer space does not count."""
        rows = sum(r.numel() // max(r.shape[-2], 1) * self._length for r in self._rows)
        return rows + sum(t.numel() for t in self.kept) + sum(part.numel() for part in self._parts.values())

    def _check(self, rows: tuple[Tensor, ...]) -> None:
        new = [(*r.shape[:-2], r.shape[-1]) for r in rows]
        known = [(*r.shape[:-2], r.shape[-1]) for r in self._rows]
        lengths = {r.shape[-2] for r in rows}
        if len(lengths) != 1 or (known and new != known):
            found = ", ".join(str(list(r.shape)) for r in rows) or "none"
            held = ", ".join(f"[{', '.join(map(str, (*sizes[:-1], 'S', sizes[-1])))}]" for sizes in known)
            raise ValueError(
                f"rows of {found} cannot be added; expected {held or 'rows [..., S, X]'} with one S for all: "
                "a cache must be used with the same sequences in every call"
            )
