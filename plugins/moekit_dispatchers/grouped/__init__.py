"""The grouped dispatcher: sorts pairs by expert and runs all experts in one grouped product. Nothing is dropped.

Reference implementation: the dispatcher ``loop``.
"""

from __future__ import annotations

from typing import ClassVar

from moekit.spec.kinds import PAIR_FORMS, DispatcherSpec, Form


class Grouped(DispatcherSpec):
    """The grouped dispatcher has no options."""

    forms: ClassVar[frozenset[Form]] = PAIR_FORMS
    dropless: ClassVar[bool] = True
