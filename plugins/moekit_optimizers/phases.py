"""Counting steps within the phases of a schedule. Torch-free.

The k-th of a phase's n steps has progress k/n. So a warm-up starts above 0 and ends on the full rate, and a decay ends
on its final rate at the last step of the run.
"""

from __future__ import annotations


def progress(step: int, start: int, length: int) -> float:
    """The fraction of a phase that is done after ``step``: 0 before it, k/n at its k-th of n steps, 1 from its last on.

    Args:
        step: counted from 0.
        start: first step of the phase.
        length: n, the steps it lasts; a phase of no steps is done at ``start``.
    """
    if step < start:
        return 0.0
    return min((step - start + 1) / length, 1.0) if length > 0 else 1.0
