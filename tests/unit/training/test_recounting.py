"""A checkpoint's loops count micro-batches; a run that goes on with another number of them counts the same steps."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from moekit.errors import CheckpointError
from moekit.training.run.resume import recount


def checkpoint(counts: dict[str, int], accumulate: int) -> dict[str, Any]:
    progress = {part: dict(counts) for part in ("total", "current")}
    return {
        "moekit": {"accumulate": accumulate},
        "loops": {"fit_loop": {"epoch_loop.batch_progress": {**progress, "is_last_batch": False}}},
    }


@pytest.mark.parametrize("now", [1, 2, 3, 8])
def test_steps_stay_and_micro_batches_are_those_of_now(now: int) -> None:
    """Five steps of four, whatever of a micro-batch is counted."""
    saved = checkpoint({"ready": 20, "started": 20, "processed": 20, "completed": 20}, accumulate=4)
    recount(saved, now)
    assert (
        saved["loops"] == checkpoint(dict.fromkeys(("ready", "started", "processed", "completed"), 5 * now), 4)["loops"]
    )


def test_within_a_step_only_the_same_number_goes_on() -> None:
    saved = checkpoint({"ready": 20, "completed": 19}, accumulate=4)
    before = deepcopy(saved)
    recount(saved, 4)
    assert saved == before
    with pytest.raises(CheckpointError, match=r"within a step of 4 micro-batches[\s\S]*accumulate_grad_batches=4 goes"):
        recount(saved, 2)
