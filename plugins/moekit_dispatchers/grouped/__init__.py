"""The grouped dispatcher: sorts pairs by expert and runs all experts in one grouped product. Nothing is dropped.

Reference implementation: the dispatcher ``loop``.
"""

from __future__ import annotations

from dataclasses import dataclass

from moekit.component import Component
from moekit.spec.kinds import DispatcherSpec


@dataclass(frozen=True, kw_only=True)
class Grouped(DispatcherSpec):
    """The grouped dispatcher has no options."""


COMPONENT = Component(
    name="grouped",
    spec=Grouped,
    target="moekit_dispatchers.grouped.module:GroupedDispatcher",
    summary="sorts pairs by expert and runs all experts in one grouped product; dropless, compiles whole",
    paper="Gale et al. 2022, MegaBlocks (arXiv 2211.15841)",
)
