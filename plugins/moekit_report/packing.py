"""Numbers for a page: thinned, rounded, packed as bytes."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from moekit_report.reading import LayerLog

POINTS = 400  # of a curve
LOAD_SCALE, LIFT_SCALE = 50, 40  # a byte holds up to 5.1 times a fair share, and a lift of up to 6.4


def shares(load_XE: np.ndarray) -> list[list[float]]:
    """Each row divided by its sum."""
    return rounded(load_XE / np.maximum(load_XE.sum(1, keepdims=True), 1))


def rounded(values: np.ndarray) -> list[list[float]]:
    """A matrix to four decimal places."""
    return [[round(float(value), 4) for value in row] for row in values]


def packed_lift(count_EE: np.ndarray, log: LayerLog) -> str:
    """How many times as often as by chance two experts have a token together, packed as bytes."""
    load_E, tokens = log.load_XE[-1].astype(float), max(int(log.values["tokens"][-1]), 1)
    expected_EE = np.outer(load_E, load_E) / tokens
    lift_EE = np.divide(count_EE, expected_EE, out=np.zeros_like(expected_EE), where=expected_EE > 0)
    return packed(np.clip(np.rint(lift_EE * LIFT_SCALE), 0, 255).astype(np.uint8))


def within(pairs: Mapping[str, np.ndarray], room: int) -> list[str]:
    """The first layers whose matrices have so many cells together; one at least."""
    kept: list[str] = []
    size = 0
    for name, matrix in pairs.items():
        size += matrix.size
        if size <= room or not kept:
            kept.append(name)
    return kept


def every(rows: int, most: int) -> int:
    """Which of so many rows to keep, every so many-th, so that at most ``most`` are left."""
    return max(1, -(-rows // most))


def thinned(rows: int, most: int) -> np.ndarray:
    """Row numbers, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, max(rows - 1, 0), min(rows, most)).round().astype(int))


def packed(values: np.ndarray) -> str:
    """The bytes of an array in base64."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


def plain(value: Any) -> float | None:
    """A number for JSON, to six digits; None for itself, NaN and infinity."""
    number = math.nan if value is None else float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None
