"""How uneven a load is."""

from __future__ import annotations

from torch import Tensor


def max_violation(load_E: Tensor) -> Tensor:
    """MaxVio: how far the busiest expert lies above the mean load, ``(max c - mean c) / mean c``.

    0 when all experts get the same, E - 1 when one gets everything, 0 when there is no load.

    Args:
        load_E: tokens per expert, ``[..., E]``; leading dimensions (layers, steps) are kept.

    Returns:
        ``[...]``, floating.

    Source: Wang et al. 2024, Auxiliary-Loss-Free Load Balancing.
    """
    load_E = load_E if load_E.is_floating_point() else load_E.long()
    total = load_E.sum(-1)
    excess = load_E.amax(-1) * load_E.shape[-1] - total  # E times (max - mean): exact for counts
    return (excess / total).where(total > 0, 0)
