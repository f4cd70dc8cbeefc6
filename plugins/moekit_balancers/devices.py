"""Experts cut into devices, in order: expert e lies on device ``e // (E / G)``. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator


def uneven_devices(groups: int, num_experts: int) -> Iterator[str]:
    """A sentence where G devices cannot hold the same number of the E experts each."""
    if num_experts % groups:
        even = [str(g) for g in range(1, num_experts + 1) if num_experts % g == 0]
        yield f"groups={groups} does not divide the {num_experts} experts evenly; expected one of {', '.join(even)}"
