"""Reading the checkpoint that a run resumes, and what must match between it and the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from moekit.checkpoints.reading import Checkpoint, open_checkpoint
from moekit.compat import loop_counters
from moekit.errors import CheckpointError
from moekit.parallel.launch import RANK_ZERO_TIMEOUT, decide_on_rank_zero

SLOWEST = 100e6  # bytes/s that are read of a checkpoint, at the least, while other processes wait


def read_checkpoint(path: Path) -> Checkpoint:
    """Opens a checkpoint that ``LitMoE`` wrote.

    Raises:
        CheckpointError: it is missing, damaged, or no checkpoint of a training run.
    """
    checkpoint = open_checkpoint(path)
    plain = checkpoint.plain
    if not isinstance(plain, dict) or "moekit" not in plain or "spec" not in plain.get("hyper_parameters", {}):
        raise CheckpointError(
            f"{checkpoint.path} is no checkpoint of a moekit run (no 'moekit' part, or no spec in it)"
        )
    return checkpoint


def verify_checkpoints(checkpoints: Sequence[Checkpoint]) -> None:
    """Has the first process of a run compare every byte of what it goes on from; the others wait for its word.

    They compare the files that they read, when they read them: a sum taken by each would read all of it once a process.

    Raises:
        CheckpointError: naming the first file that is damaged.
        MoekitError: the same, in the other processes.
    """

    def compare() -> str:
        for checkpoint in checkpoints:
            checkpoint.verify()
        return "whole"

    size = sum(digest.size for checkpoint in checkpoints for digest in checkpoint.manifest.files.values())
    if checkpoints:
        decide_on_rank_zero("checkpoint", compare, timeout=RANK_ZERO_TIMEOUT + timedelta(seconds=size / SLOWEST))


def check_same_model(path: Path, saved: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    """Refuses to go on from a checkpoint of another model.

    Args:
        path: the checkpoint, for the message.
        saved: the plain spec in it.
        spec: the plain spec to go on with.

    Raises:
        CheckpointError: naming the first keys that differ.
    """
    found = [
        (f"{part}.{key}" if key else part, was, now)
        for part in ("model", "objective")
        for key, was, now in differences(saved.get(part), spec.get(part))
    ]
    for part, key in (("optimizer", "use"), ("start", "update")):  # what the optimizer's state is of
        was, now = ((tree.get(part) or {}).get(key) for tree in (saved, spec))
        if was != now:
            found.append((f"{part}.{key}", was, now))
    if found:
        lines = [f"  {key}: {was!r} in the checkpoint, {now!r} now" for key, was, now in found[:5]]
        raise CheckpointError(f"{path} cannot go on: it holds another model\n" + "\n".join(lines))


def differences(a: Any, b: Any, at: str = "") -> list[tuple[str, Any, Any]]:
    """Where two plain trees differ: (path, value in ``a``, value in ``b``)."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = [*a, *(key for key in b if key not in a)]
        return [d for key in keys for d in differences(a.get(key), b.get(key), f"{at}.{key}" if at else str(key))]
    return [] if a == b else [(at, a, b)]


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
