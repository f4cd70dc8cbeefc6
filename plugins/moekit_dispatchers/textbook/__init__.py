"""The textbook dispatcher: the layer as one would first write it. Nothing is dropped.

Reference implementation: the dispatcher ``loop``.
"""

from __future__ import annotations

from typing import ClassVar

from moekit.spec.kinds import PAIR_FORMS, DispatcherSpec, Form


class Textbook(DispatcherSpec):
    """The textbook dispatcher has no options."""

    forms: ClassVar[frozenset[Form]] = PAIR_FORMS
    dropless: ClassVar[bool] = True
