"""Experts split over G devices, in order: expert e is on device ``e // (E / G)``. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator


def uneven_devices(groups: int, num_experts: int) -> Iterator[str]:
    """The conflict, as a sentence, if G devices cannot hold equal numbers of the E experts."""
    if num_experts % groups:
        even = [str(g) for g in range(1, num_experts + 1) if num_experts % g == 0]
        yield f"groups={groups} does not divide the {num_experts} experts evenly; expected one of {', '.join(even)}"
