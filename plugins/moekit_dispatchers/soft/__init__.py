"""The soft dispatcher: every expert works for every token, weighted. Torch-free: component."""

from __future__ import annotations

from typing import ClassVar

from moekit.spec.kinds import DispatcherSpec, Form


class Soft(DispatcherSpec):
    """The soft dispatcher has no options."""

    dropless: ClassVar[bool] = True
    forms: ClassVar[frozenset[Form]] = frozenset({"soft"})
