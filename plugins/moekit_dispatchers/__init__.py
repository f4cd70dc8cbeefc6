"""First-party dispatchers: how tokens get to their experts and back."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl
from moekit_dispatchers import auto, capacity, device_capacity, expert_parallel, fused, grouped, loop, soft, triton

MOEKIT_API = 1


@hookimpl
def moekit_dispatchers() -> list[Component]:
    """The dispatchers of this plugin."""
    return [
        auto.COMPONENT,
        capacity.COMPONENT,
        device_capacity.COMPONENT,
        expert_parallel.COMPONENT,
        fused.COMPONENT,
        grouped.COMPONENT,
        loop.COMPONENT,
        soft.COMPONENT,
        triton.COMPONENT,
    ]
