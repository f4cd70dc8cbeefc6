"""The grouped dispatcher: sorts pairs by expert and runs all experts in one grouped product. Nothing is dropped.

Reference implementation: the dispatcher ``loop``.
"""

from __future__ import annotations

from moekit.spec.kinds import DispatcherSpec


class Grouped(DispatcherSpec):
    """The grouped dispatcher has no options."""
