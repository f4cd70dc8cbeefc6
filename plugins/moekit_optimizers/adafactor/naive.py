"""Reference implementation of Adafactor, one number at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Memory:
    """A parameter's state between steps.

    Attributes:
        steps: taken so far.
        rows: R / m of a stack of matrices, by matrix and row.
        columns: C / n, by matrix and column.
        squares: V of a vector, by element.
    """

    steps: int = 0
    rows: dict[tuple[int, int], float] = field(default_factory=dict)
    columns: dict[tuple[int, int], float] = field(default_factory=dict)
    squares: dict[int, float] = field(default_factory=dict)


def naive_adafactor(
    w: Tensor, g: Tensor, kept: Memory, *, lr: float, decay: float, clip: float, weight_decay: float, eps: list[float]
) -> Tensor:
    """The weights after a step of algorithm 4 (matrices) or 5 (vectors) of Shazeer and Stern 2018.

    A tensor of more dimensions is a stack of matrices: each has rows and columns of its own; size and clip are of the
    whole stack. Here the paper's sums over rows and columns are divided by their lengths, which changes no ``V``.
    ``eps[0]`` bounds the mean of a matrix, and its square each ``V``; the paper adds it to each squared gradient.

    Args:
        w: weights.
        g: their gradients.
        kept: its state, which is updated.
        lr: the largest relative step; ``weight_decay`` is times this, and is subtracted before the step.
        decay: c.
        clip: d.
        weight_decay: of the weights, per step.
        eps: epsilons 1 and 2.
    """
    kept.steps += 1
    beta = 1 - kept.steps**-decay
    rate = max(eps[1], _rms(w.flatten().tolist())) * min(lr, 1 / math.sqrt(kept.steps))
    if w.ndim < 2:
        V = _vector(g.flatten().tolist(), kept, beta)
    else:
        n, m = w.shape[-2:]
        V = _matrices(g.reshape(-1, n, m).tolist(), kept, beta, eps[0])
    u = [x / math.sqrt(max(v, eps[0] ** 2)) for x, v in zip(g.flatten().tolist(), V, strict=True)]
    shorter = max(1.0, _rms(u) / clip)
    moved = [x * (1 - lr * weight_decay) - rate * y / shorter for x, y in zip(w.flatten().tolist(), u, strict=True)]
    return w.new_tensor(moved).view(w.shape)


def _vector(g: Sequence[float], kept: Memory, beta: float) -> list[float]:
    for i, x in enumerate(g):
        kept.squares[i] = beta * kept.squares.get(i, 0.0) + (1 - beta) * x**2
    return [kept.squares[i] for i in range(len(g))]


def _matrices(g: Sequence[Sequence[Sequence[float]]], kept: Memory, beta: float, least: float) -> list[float]:
    V = []
    for e, matrix in enumerate(g):
        n, m = len(matrix), len(matrix[0])
        for i in range(n):
            mean = sum(matrix[i][j] ** 2 for j in range(m)) / m
            kept.rows[e, i] = beta * kept.rows.get((e, i), 0.0) + (1 - beta) * mean
        for j in range(m):
            mean = sum(matrix[i][j] ** 2 for i in range(n)) / n
            kept.columns[e, j] = beta * kept.columns.get((e, j), 0.0) + (1 - beta) * mean
        whole = max(least, sum(kept.rows[e, i] for i in range(n)) / n)
        V += [kept.rows[e, i] * kept.columns[e, j] / whole for i in range(n) for j in range(m)]
    return V


def _rms(numbers: Sequence[float]) -> float:
    return math.sqrt(sum(x**2 for x in numbers) / len(numbers))
