"""Going on with another number of micro-batches in a step: Lightning counts them, and a run counts steps."""

from __future__ import annotations

from typing import Any

from moekit.compat import loop_counters
from moekit.errors import CheckpointError


def recount(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Has the loops of a checkpoint count in micro-batches of ``accumulate`` a step, in place.

    Four ranks with one micro-batch each see in a step what one process sees in four.

    Args:
        checkpoint: of Lightning, with a ``moekit`` part that says how many there were.
        accumulate: micro-batches in a step, of one rank, from now on.

    Raises:
        CheckpointError: it was saved within a step.
    """
    was = int(checkpoint["moekit"]["accumulate"])
    if was == accumulate:
        return
    for counters in loop_counters(checkpoint):
        for key, count in counters.items():
            steps, rest = divmod(count, was)
            if rest:
                raise CheckpointError(
                    f"it was saved within a step of {was} micro-batches, and cannot go on with {accumulate}\n"
                    f"  trainer.accumulate_grad_batches={was} goes on with it"
                )
            counters[key] = steps * accumulate
