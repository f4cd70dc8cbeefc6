"""Resuming a run: verifying its checkpoint, and checking that it fits the recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from moekit.checkpoints.reading import Checkpoint
from moekit.compat import loop_counters
from moekit.errors import CheckpointError
from moekit.parallel.launch import RANK_ZERO_TIMEOUT, decide_on_rank_zero
from moekit.spec import to_plain
from moekit.spec.recipe import Recipe

MIN_READ_RATE = 100e6  # bytes/s: the slowest disk for which other ranks wait long enough


def verify_checkpoints(checkpoints: Sequence[Checkpoint]) -> None:
    """Rank 0 verifies all checksums of the checkpoints that a run resumes; other ranks wait for the result.

    Other ranks verify only the files that they read, when they read them: otherwise every rank would read everything.

    Raises:
        CheckpointError: naming the first damaged file.
        MoekitError: the same, on other ranks.
    """

    def verify() -> str:
        for checkpoint in checkpoints:
            checkpoint.verify()
        return "intact"

    size = sum(digest.size for checkpoint in checkpoints for digest in checkpoint.manifest.files.values())
    if checkpoints:
        decide_on_rank_zero("checkpoint", verify, timeout=RANK_ZERO_TIMEOUT + timedelta(seconds=size / MIN_READ_RATE))


def check_same_model(path: Path, saved: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    """Rejects a checkpoint of another model, by the plain specs in the checkpoint and of the resumed run.

    Raises:
        CheckpointError: naming the first keys that differ.
    """
    found = [
        (f"{part}.{key}" if key else part, was, now)
        for part in ("model", "objective")
        for key, was, now in differences(saved.get(part), spec.get(part))
    ]
    # The first two determine the optimizer's state; the weights to start from are not loaded again.
    for part, key in (("optimizer", "use"), ("start", "update"), ("start", "run")):
        was, now = ((tree.get(part) or {}).get(key) for tree in (saved, spec))
        if was != now:
            found.append((f"{part}.{key}", was, now))
    if found:
        lines = [f"  {key}: {was!r} in the checkpoint, {now!r} now" for key, was, now in found[:5]]
        raise CheckpointError(f"cannot resume from {path}: it holds another model\n" + "\n".join(lines))


def check_unchanged(
    saved: Checkpoint, recipe: Recipe, precision: str, fingerprint: str, *, allow: bool, report: Callable[[str], object]
) -> None:
    """Rejects, or with ``allow`` reports, what would make a resumed run differ from an uninterrupted one.

    Raises:
        CheckpointError: naming what has changed.
    """
    found = "".join(f"\n  {line}" for line in changes(saved, to_plain(recipe, full_names=True), precision, fingerprint))
    if found and not allow:
        raise CheckpointError(
            f"{saved.path} cannot be resumed exactly, for this has changed:{found}\n"
            "  give the run what it had, or resume it with the changes: --allow-changes"
        )
    if found:
        report(f"resumed with changes (--allow-changes):{found}")


def changes(saved: Checkpoint, spec: Mapping[str, Any], precision: str, fingerprint: str) -> list[str]:
    """What differs from the run that is resumed, in a line each, so that it would not continue as if uninterrupted.

    Args:
        saved: the checkpoint.
        spec: the resumed run's plain spec.
        precision: the resumed run's.
        fingerprint: of the resumed run's data (``Data.fingerprint``).
    """
    before, then = saved.plain["hyper_parameters"]["spec"], saved.plain["moekit"]
    found = [
        (f"{part}.{key}" if key else part, was, now)
        for part in ("data", "seed")
        for key, was, now in differences(before.get(part), spec.get(part))
    ]
    if then["precision"] != precision:
        found.append(("trainer.precision", then["precision"], precision))
    lines = [f"{key}: {was!r} in the checkpoint, {now!r} now" for key, was, now in found]
    if then["fingerprint"] != fingerprint:
        lines.append("the contents of the data are not those that the run was trained on so far")
    return lines


def differences(a: Any, b: Any, at: str = "") -> list[tuple[str, Any, Any]]:
    """The differences of two plain trees: (path, value in ``a``, value in ``b``)."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = [*a, *(key for key in b if key not in a)]
        return [d for key in keys for d in differences(a.get(key), b.get(key), f"{at}.{key}" if at else str(key))]
    return [] if a == b else [(at, a, b)]


def recount(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Converts a checkpoint's loop counters to ``accumulate`` micro-batches of one rank per step, in place.

    A step of 4 ranks with 1 micro-batch each is a step of 1 rank with 4. The checkpoint has the old number.

    Raises:
        CheckpointError: it was saved within a step, and this number changed.
    """
    was = int(checkpoint["moekit"]["accumulate"])
    if was == accumulate:
        return
    for counters in loop_counters(checkpoint):
        for key, count in counters.items():
            steps, rest = divmod(count, was)
            if rest:
                raise CheckpointError(
                    f"a checkpoint within a step of {was} micro-batches cannot be resumed with steps of {accumulate}\n"
                    f"  expected trainer.accumulate_grad_batches={was}"
                )
            counters[key] = steps * accumulate
