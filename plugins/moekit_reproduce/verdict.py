"""The statistical rule of the ledger. Torch-free.

A contrast is computed for each seed from systems that saw the same batches. Of its mean, Student's t gives the 90 %
interval: each of its ends is wrong in 5 % of cases, so a verdict in one direction errs with a probability of 5 %.
With ``at_least`` stated before the run:

- *holds*: the whole interval is at ``at_least`` or above, and above 0 unless ``at_least`` is negative;
- *direction only*: it is not, but all of it is above 0;
- *does not hold here*: all of it is below ``at_least``, or at 0 or below if the claim is of a difference;
- *too noisy to say*: anything else.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

Verdict = Literal["holds", "direction only", "does not hold here", "too noisy to say"]
TAIL: Final = 0.05
"""The probability that the mean is beyond one end of the interval."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The mean of some numbers, and the ends of its interval; infinite for fewer than two numbers."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float]) -> Interval:
    """The mean with its 90 % interval by Student's t.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("the mean of no values")
    if not all(map(math.isfinite, values)):
        return Interval(mean=math.nan, low=-math.inf, high=math.inf)
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean=mean, low=-math.inf, high=math.inf)
    half = t_quantile(1 - TAIL, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean=mean, low=mean - half, high=mean + half)


def verdict(found: Interval, at_least: float) -> Verdict:
    """What an interval says about a claim that the mean is ``at_least`` so much."""
    if found.low >= at_least and (found.low > 0 or at_least < 0):
        return "holds"
    if found.low > 0:
        return "direction only"
    refuted = found.high < at_least or (found.high <= 0 <= at_least)
    return "does not hold here" if refuted else "too noisy to say"


def t_quantile(p: float, df: int) -> float:
    """The number that Student's t with ``df`` degrees of freedom is below with probability ``p`` > 0.5, by bisection.

    Raises:
        ValueError: ``p`` or ``df`` is out of range.
    """
    if not 0.5 < p < 1 or df < 1:
        raise ValueError(f"p={p}, df={df}; expected 0.5 < p < 1 and df >= 1")
    low, high = 0.0, 1.0
    while t_cdf(high, df) < p:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return high


def t_cdf(t: float, df: int) -> float:
    """The probability that Student's t is below ``t``; closed form for whole ``df``.

    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    theta = math.atan(t / math.sqrt(df))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = df % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(1 + odd, df, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    inside = (theta + sine * total) * 2 / math.pi if odd else sine * total
    return 0.5 + inside / 2
