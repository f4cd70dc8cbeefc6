"""CV² as loops over tokens and experts, from the equations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor


def importance(gates: Iterable[tuple[int, Tensor]], num_experts: int, zero: Tensor) -> list[Tensor]:
    """``Importance_e = sum_t g_te``.

    Args:
        gates: (expert, gate) of each pair that is sent, of valid tokens.
        num_experts: E.
        zero: 0-d, where each sum starts.
    """
    sums = [zero] * num_experts
    for e, gate in gates:
        sums[e] = sums[e] + gate
    return sums


def cv_squared(values: Sequence[Tensor]) -> Tensor:
    """Population variance divided by squared mean; 0 if all are 0. (The authors' code adds 1e-10 to the latter.)"""
    mean = sum(values[1:], values[0]) / len(values)
    squares = [(v - mean) ** 2 for v in values]
    variance = sum(squares[1:], squares[0]) / len(values)
    return variance / mean**2 if mean.item() else variance
