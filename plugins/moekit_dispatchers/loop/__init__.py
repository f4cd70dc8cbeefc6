"""The loop dispatcher: one expert after the other. It is the reference implementation of the other dispatchers."""

from __future__ import annotations

from moekit.spec.kinds import DispatcherSpec


class Loop(DispatcherSpec):
    """The loop dispatcher has no options."""
