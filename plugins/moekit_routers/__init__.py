"""First-party routers: they turn tokens into routings."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl
from moekit_routers import dense, hierarchical, noisy_topk, strict, topk

MOEKIT_API = 1


@hookimpl
def moekit_routers() -> list[Component]:
    """The routers of this plugin."""
    return [dense.COMPONENT, topk.COMPONENT, noisy_topk.COMPONENT, hierarchical.COMPONENT, strict.COMPONENT]
