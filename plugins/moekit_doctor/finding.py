"""``Finding``: one thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "fault"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: the group that it is printed in.
        topic: what was looked at.
        value: what was found.
        level: ``fault`` stops something from working; ``note`` makes it slower or leaves something out.
        advice: what to do; empty for nothing.
    """

    area: str
    topic: str
    value: str
    level: Level = "ok"
    advice: str = ""
