"""What dispatchers say whose backward pass has no derivative."""

from __future__ import annotations

import torch

from moekit.errors import MoekitError


def forbid_second_derivative(name: str) -> None:
    """Rejects a backward pass under ``create_graph``: a second derivative would be missing silently.

    Args:
        name: of the dispatcher.

    Raises:
        MoekitError: gradients are enabled.
    """
    if torch.is_grad_enabled():
        raise MoekitError(
            f"the dispatcher '{name}' is differentiable once, so it does not support create_graph=True; "
            "the dispatcher 'grouped' has derivatives of any order"
        )
