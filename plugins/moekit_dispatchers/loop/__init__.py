"""The loop dispatcher: one expert after the other. It is the reference implementation of the other dispatchers."""

from __future__ import annotations

from typing import ClassVar

from moekit.spec.kinds import PAIR_FORMS, DispatcherSpec, Form


class Loop(DispatcherSpec):
    """The loop dispatcher has no options."""

    forms: ClassVar[frozenset[Form]] = PAIR_FORMS
    dropless: ClassVar[bool] = True
