"""The loop dispatcher: one expert after the other. It is the reference implementation of the other dispatchers."""

from __future__ import annotations

from dataclasses import dataclass

from moekit.component import Component
from moekit.spec.kinds import DispatcherSpec


@dataclass(frozen=True, kw_only=True)
class Loop(DispatcherSpec):
    """The loop dispatcher has no options."""


COMPONENT = Component(
    name="loop",
    spec=Loop,
    target="moekit_dispatchers.loop.module:LoopDispatcher",
    summary="one expert after the other, for reading and as reference in tests; dropless",
)
