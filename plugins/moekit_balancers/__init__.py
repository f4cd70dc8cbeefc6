"""First-party balancers: losses and biases that keep the experts' loads even."""

from __future__ import annotations

from moekit.component import Component
from moekit.hookspecs import hookimpl
from moekit_balancers import (
    communication_balance,
    cv_squared,
    device_balance,
    load_balance,
    sequence_balance,
    sign_bias,
    z_loss,
)

MOEKIT_API = 1


@hookimpl
def moekit_balancers() -> list[Component]:
    """The balancers of this plugin."""
    return [
        communication_balance.COMPONENT,
        cv_squared.COMPONENT,
        device_balance.COMPONENT,
        load_balance.COMPONENT,
        sequence_balance.COMPONENT,
        sign_bias.COMPONENT,
        z_loss.COMPONENT,
    ]
