"""What a part consists of: cases, each of which gives a verdict, figures, or both. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

Size = TypeVar("Size")


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where a part runs.

    Attributes:
        device: ``cuda``, or ``cpu`` for a rehearsal.
    """

    device: str

    @property
    def rehearsal(self) -> bool:
        """Whether sizes are tiny and no figure counts."""
        return self.device == "cpu"

    def size(self, on_card: Size, rehearsed: Size) -> Size:
        """One of two sizes."""
        return rehearsed if self.rehearsal else on_card


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a case found.

    Attributes:
        ok: the verdict; None where there are only figures.
        note: why not, or what a reader must know.
        figures: plain values by name.
    """

    ok: bool | None = None
    note: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to find out.

    Attributes:
        name: unique in its part.
        run: finds it out; an exception is a failure.
    """

    name: str
    run: Callable[[], Result]
