"""First-party dispatchers: how tokens get to their experts and back."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl
from moekit_dispatchers import capacity, device_capacity, grouped, loop, soft

MOEKIT_API = 1


@hookimpl
def moekit_dispatchers() -> list[Component]:
    """The dispatchers of this plugin."""
    return [
        capacity.COMPONENT,
        device_capacity.COMPONENT,
        grouped.COMPONENT,
        loop.COMPONENT,
        soft.COMPONENT,
    ]
