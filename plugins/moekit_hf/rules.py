"""The table between their tensors and ours: names, regions and views, for both directions. Torch-free until applied.

A rule says which tensor of theirs is which region of which tensor of ours, and by which view. Names are patterns:
``{i}`` is a layer, ``{e}`` an expert. A view takes a tensor of theirs to the region of ours, and back.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, final

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


class View(ABC):
    """An invertible change of order: no number is computed, so that a round trip is exact."""

    @abstractmethod
    def to_ours(self, theirs: Tensor) -> Tensor:
        """The region of ours."""

    @abstractmethod
    def to_theirs(self, ours: Tensor) -> Tensor:
        """The inverse."""

    def theirs_shape(self, ours: Shape) -> Shape:
        """The shape of theirs for a region of ours."""
        return ours

    def then(self, other: View) -> View:
        """This view, then another (in the direction to ours)."""
        return Chain(self, other)


@final
@dataclass(frozen=True)
class Same(View):
    """As it is."""

    def to_ours(self, theirs: Tensor) -> Tensor:
        """The same."""
        return theirs

    def to_theirs(self, ours: Tensor) -> Tensor:
        """The same."""
        return ours


@final
@dataclass(frozen=True)
class Transposed(View):
    """Theirs is ``[in, out]``, ours ``[out, in]``."""

    def to_ours(self, theirs: Tensor) -> Tensor:
        """The transpose."""
        return theirs.mT

    def to_theirs(self, ours: Tensor) -> Tensor:
        """The transpose."""
        return ours.mT

    def theirs_shape(self, ours: Shape) -> Shape:
        """The last two sizes swapped."""
        return (*ours[:-2], ours[-1], ours[-2])


@final
@dataclass(frozen=True)
class Rows(View):
    """Rows in another order: row j of ours is row ``order[j]`` of theirs."""

    order: tuple[int, ...]

    def to_ours(self, theirs: Tensor) -> Tensor:
        """The rows in our order."""
        return theirs[list(self.order)]

    def to_theirs(self, ours: Tensor) -> Tensor:
        """The rows in their order."""
        return ours[list(_inverse(self.order))]


@cache
def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))


@final
@dataclass(frozen=True)
class Shaped(View):
    """Theirs has another shape of the same elements in the same order, such as ``[1, D]`` for ``[D]``."""

    theirs: Shape

    def to_ours(self, theirs: Tensor) -> Tensor:
        """Flat, in one row for each leading index of ours."""
        return theirs.flatten()

    def to_theirs(self, ours: Tensor) -> Tensor:
        """In their shape."""
        return ours.reshape(self.theirs)

    def theirs_shape(self, ours: Shape) -> Shape:
        """Their shape."""
        return self.theirs


@final
@dataclass(frozen=True)
class Chain(View):
    """One view after another."""

    first: View
    second: View

    def to_ours(self, theirs: Tensor) -> Tensor:
        """Both, in order."""
        return self.second.to_ours(self.first.to_ours(theirs))

    def to_theirs(self, ours: Tensor) -> Tensor:
        """Both inverses, the last first."""
        return self.first.to_theirs(self.second.to_theirs(ours))

    def theirs_shape(self, ours: Shape) -> Shape:
        """The shape before both."""
        return self.first.theirs_shape(self.second.theirs_shape(ours))


SAME = Same()
TRANSPOSED = Transposed()


def interleaved_halves(size: int) -> Rows:
    """Theirs alternates ``a0 b0 a1 b1 …`` (rotary pairs, gate and up); ours has all a's, then all b's."""
    return Rows((*range(0, size, 2), *range(1, size, 2)))


def rotary_pairs(heads: int, plain: int, rotary: int) -> Rows:
    """Rows of heads that have ``plain`` rows, then ``rotary`` ones in neighbouring pairs; ours rotates halves."""
    head = (*range(plain), *(plain + row for row in interleaved_halves(rotary).order))
    return Rows(tuple(h * len(head) + row for h in range(heads) for row in head))


Lead = Literal["", "each", "one", "stack"]


@dataclass(frozen=True)
class Rule:
    """One row of a family's table.

    Args:
        theirs: their name, such as ``model.layers.{i}.mlp.experts.{e}.up_proj.weight``.
        ours: our name, such as ``blocks.{i}.ffn.experts.w_gate_up_EHD``.
        half: the first or second half of our rows; None for all rows.
        view: from theirs to that region.
        lead: what our first dimension is. ``each``: experts, of which theirs names one by ``{e}``. ``one``: a single
            expert, which theirs has without that dimension. ``stack``: experts in both.
    """

    theirs: str
    ours: str
    half: int | None = None
    view: View = SAME
    lead: Lead = ""

    def layers(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """Our tensors that this rule is for: each with its layer, as text; "" if the rule has none."""
        pattern = re.compile(re.escape(self.ours).replace(r"\{i\}", r"(?P<i>\d+)"))
        found = [(name, match) for name in names if (match := pattern.fullmatch(name))]
        return [(name, match.groupdict().get("i", "")) for name, match in found]

    def region(self, shape: Shape) -> tuple[int, int]:
        """First and last-but-one row of ours, within one expert if there are several."""
        rows = shape[1] if self.lead else shape[0]
        return (0, rows) if self.half is None else (self.half * rows // 2, (self.half + 1) * rows // 2)


@dataclass(frozen=True)
class Ignored:
    """Tensors of theirs that are not imported.

    Args:
        theirs: a regular expression for their whole name.
        why: the reason.
    """

    theirs: str
    why: str

    def fits(self, name: str) -> bool:
        """Whether a tensor is one of these."""
        return re.fullmatch(self.theirs, name) is not None
