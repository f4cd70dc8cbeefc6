"""Cache: what is kept of positions that were read, so that the next token is decoded without reading them again."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64
"""Positions that room is made for at least, when there is none left."""


class Cache:
    """What a module keeps of B sequences from one call to the next. The caller holds it; the module holds nothing.

    A module either adds rows a position (``extend``: keys and values), or leaves something of a size that does not
    change (``kept``). Modules inside it have caches of their own (``at``).

    Attributes:
        kept: what does not grow, as the module left it last: the state of a recurrence, the keys and values of a
            source. Empty at first.
    """

    def __init__(self) -> None:
        self.kept: tuple[Tensor, ...] = ()
        self._rows: tuple[Tensor, ...] = ()  # with room for more positions than there are
        self._length = 0
        self._parts: dict[str, Cache] = {}

    @property
    def length(self) -> int:
        """Positions whose rows this cache itself holds: the place of the next one."""
        return self._length

    def at(self, name: str) -> Cache:
        """The cache of a module inside, by its name there; empty when it is first asked for."""
        return self._parts.setdefault(name, Cache())

    def extend(self, *rows: Tensor) -> tuple[Tensor, ...]:
        """Adds the rows of new positions, behind those that are there.

        Args:
            rows: tensors ``[..., S, X]`` of S new positions; as many, and of the same other sizes, in every call.

        Returns:
            The same tensors for all positions, ``[..., length, X]``: views, good until the next call. (Where a new row
            wants a gradient, they are copies, good for ever.)

        Raises:
            ValueError: other rows than before.
        """
        self._check(rows)
        start, end = self._length, self._length + rows[0].shape[-2]
        held = tuple(r.narrow(-2, 0, start) for r in self._rows)
        if torch.is_grad_enabled() and any(r.requires_grad for r in (*rows, *held)):
            # Writing into the room would spoil what backward has saved of it.
            self._rows = tuple(torch.cat(pair, dim=-2) for pair in zip(held, rows, strict=True)) if held else rows
        else:
            if not held or end > self._rows[0].shape[-2]:
                room = end + max(end // 2, BLOCK)
                self._rows = tuple(r.new_empty(*r.shape[:-2], room, r.shape[-1]) for r in rows)
                for row, before in zip(self._rows, held, strict=False):
                    row.narrow(-2, 0, start).copy_(before)
            for row, new in zip(self._rows, rows, strict=True):
                row.narrow(-2, start, end - start).copy_(new)
        self._length = end
        return tuple(r.narrow(-2, 0, end) for r in self._rows)

    def numel(self) -> int:
        """How many numbers it holds, those of modules inside too; room that is not filled yet is not counted."""
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
                "a cache goes on with the sequences that it began with"
            )
