"""First-party balancers."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl
from moekit_balancers import load_balance, sequence_balance, sign_bias

MOEKIT_API = 1


@hookimpl
def moekit_balancers() -> list[Component]:
    """The balancers of this plugin."""
    return [load_balance.COMPONENT, sequence_balance.COMPONENT, sign_bias.COMPONENT]
