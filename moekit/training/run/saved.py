"""The checkpoints that ``LitMoE`` saves: what is in them, and whether a run can be resumed from one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from datetime import timedelta
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moekit.checkpoints.reading import Checkpoint, Handle, open_checkpoint
from moekit.compat import loop_counters
from moekit.errors import CheckpointError
from moekit.files import open_regular
from moekit.parallel.launch import RANK_ZERO_TIMEOUT, decide_on_rank_zero
from moekit.spec import to_plain
from moekit.spec.fields import defaults_of
from moekit.spec.kinds import DataSpec
from moekit.spec.recipe import Recipe

ANY = "*"
FORM: Mapping[str, Any] = {
    "global_step": int,
    "state_dict": {ANY: Handle},
    "moekit": {"version": str, "data": Mapping},
    "hyper_parameters": {"spec": Mapping},
}
"""What every checkpoint of ``LitMoE`` holds."""

RESUMED: Mapping[str, Any] = {
    "epoch": int,
    "loops": {"fit_loop": {"epoch_loop.batch_progress": {name: {ANY: int} for name in ("total", "current")}}},
    "callbacks": {ANY: Mapping},
    "optimizer_states": [{"state": {ANY: Mapping}, "param_groups": [{"params": [str]}]}],
    "lr_schedulers": [{"step": int}],
    "moekit": {
        "seconds": float, "tokens": float, "skipped": int, "logged": int, "accumulate": int, "fingerprint": str,
        "precision": str,
    },
}  # fmt: skip
"""What a checkpoint also holds from which a run is resumed."""

MAYBE: Mapping[str, Any] = {
    "skipped_in_a_row": int, "stopped_after": int, "unvalidated": bool, "metrics": {ANY: float},
}  # fmt: skip
"""What a checkpoint may also hold under ``moekit``, or null there."""

CALLBACKS: Mapping[str, Any] = {"SaveCheckpoints": {"best": float, "best_step": object}}
"""The state of callbacks, by their names."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Opens a checkpoint that ``LitMoE`` wrote.

    Raises:
        CheckpointError: it is missing, damaged, or not a checkpoint of a training run.
    """
    checkpoint = open_checkpoint(path)
    plain = checkpoint.plain
    if not isinstance(plain, dict) or "moekit" not in plain or "spec" not in plain.get("hyper_parameters", {}):
        raise CheckpointError(
            f"{checkpoint.path} is not a checkpoint of a moekit run (it has no key 'moekit', or no spec)"
        )
    check_form(checkpoint.path, plain, FORM)
    return checkpoint


@dataclass(frozen=True)
class CkptFile:
    """A ``.ckpt`` file that Lightning's ``ModelCheckpoint`` wrote around ``LitMoE``; ``plain`` is all that it holds."""

    path: Path
    plain: Any


def read_any_checkpoint(path: Path) -> Checkpoint | CkptFile:
    """Opens a checkpoint that ``LitMoE`` wrote, or a ``.ckpt`` file that Lightning wrote around it.

    Raises:
        CheckpointError: it is missing, damaged, or not of a training run; or the file holds more than tensors and plain
            values, which is not unpickled.
    """
    if path.suffix != ".ckpt" or path.is_dir():
        return read_checkpoint(path)
    try:
        with open_regular(path) as file:
            plain = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # the packages torch, pickle and zipfile raise a dozen kinds
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors and plain values: {why}\n"
            "  expected a file of Lightning's ModelCheckpoint around LitMoE; other objects are not unpickled"
        ) from error
    if not isinstance(plain, dict) or "moekit" not in plain:
        raise CheckpointError(f"{path} is not a checkpoint of LitMoE: it has no key 'moekit'")
    check_form(path, plain, {**FORM, "state_dict": {ANY: Tensor}})
    return CkptFile(path, plain)


def check_form(path: Path, tree: Any, form: Any, at: str = "") -> None:
    """Rejects a checkpoint whose plain values are not of the form that ``LitMoE`` writes.

    Args:
        path: of the checkpoint.
        tree: what it holds.
        form: a type; a mapping of the keys that there must be, with their forms; a list with the form of each item; or
            ``{ANY: form}`` for the form of the values of any keys.
        at: the place of ``tree`` in the checkpoint.

    Raises:
        CheckpointError: naming the first value of another form.
    """
    if isinstance(form, Mapping):
        _check_type(path, tree, Mapping, at)
        for key in tree if ANY in form else form:
            if key not in tree:
                raise CheckpointError(f"{path} is not a whole checkpoint of a run: it has no {_joined(at, key)}")
            check_form(path, tree[key], form[ANY if ANY in form else key], _joined(at, key))
    elif isinstance(form, list):
        _check_type(path, tree, list, at)
        for i, item in enumerate(tree):
            check_form(path, item, form[0], _joined(at, str(i)))
    else:
        _check_type(path, tree, form, at)


def _check_type(path: Path, value: Any, kind: type, at: str) -> None:
    wanted: Any = int | float if kind is float else kind
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        words = {
            Mapping: "a mapping",
            Handle: "a tensor",
            Tensor: "a tensor",
            int: "an integer",
            str: "text",
            list: "a list",
            bool: "true or false",
        }
        found = type(value).__name__ if isinstance(value, Mapping | list | Handle) else f"{value!r:.40}"
        raise CheckpointError(
            f"{path} is not a checkpoint of a run: {at} is {found}, not {words.get(kind, 'a number')}\n"
            "  it was changed, or is of another version of moekit"
        )
    if kind is int and value < 0:
        raise CheckpointError(f"{path} is not a checkpoint of a run: {at} is {value}, less than 0")


def _joined(at: str, key: str) -> str:
    return f"{at}.{key}" if at else str(key)


def check_resumable(checkpoint: Checkpoint) -> None:
    """Rejects a checkpoint from which no run can be resumed, although it may hold a model.

    Raises:
        CheckpointError: naming the first value that is missing or of another form.
    """
    check_form(checkpoint.path, checkpoint.plain, RESUMED)
    for key, form in MAYBE.items():
        if (value := checkpoint.plain["moekit"].get(key)) is not None:
            check_form(checkpoint.path, value, form, f"moekit.{key}")
    for name, state in checkpoint.plain["callbacks"].items():
        for callback, form in CALLBACKS.items():
            if callback in name:
                check_form(checkpoint.path, state, form, f"callbacks.{name}")
    if len(checkpoint.plain["optimizer_states"]) != 1 or checkpoint.plain["moekit"]["accumulate"] < 1:
        raise CheckpointError(f"{checkpoint.path} is not a checkpoint of a run: it has not one optimizer")


# ---- resuming --------------------------------------------------------------------------------------------------------

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
    decide_on_rank_zero("checkpoint", verify, timeout=RANK_ZERO_TIMEOUT + timedelta(seconds=size / MIN_READ_RATE))


def check_same_model(path: Path, saved: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    """Rejects a checkpoint of another model, optimizer or start, by the plain specs in it and of the resumed run.

    The weights to start from are not loaded again, so that a change of ``start`` would have no effect.

    Raises:
        CheckpointError: naming the first keys that differ.
    """
    if lines := _changed(saved, spec, "model", "objective", "start", "optimizer.use"):
        raise CheckpointError(
            f"{path} cannot be resumed, for this has changed:{''.join(lines[:5])}\n"
            f"  train a new run from its weights instead: start.run={path}"
        )


def check_same_tokens(path: Path, saved: Mapping[str, Any], data: DataSpec | None, *, stated: bool = False) -> None:
    """Rejects data of other tokens than those of a checkpoint's weights, whose vocabulary is loaded and never learnt.

    Args:
        path, saved: of the checkpoint, and the plain spec in it.
        data: of the run that takes its weights.
        stated: only options other than their defaults count, or a tokenizer of another kind.

    Raises:
        CheckpointError: naming the options that differ, and what they were.
    """
    if data is None:
        return
    now, lines, expected = to_plain(data, full_names=True), list[str](), ""
    for name in data.token_options():
        for (_, old), (at, new) in zip(_held(saved.get("data"), name, "data"), _held(now, name, "data"), strict=False):
            same_kind = not (isinstance(old, Mapping) and isinstance(new, Mapping)) or old.get("use") == new.get("use")
            default = getattr(data, name, MISSING) == defaults_of(type(data)).get(name)
            if old != new and not (stated and default and same_kind):
                lines += [_change(*each) for each in differences(old, new, at)]
                expected += f"\n  expected {at}='{json.dumps(old)}'"
    if lines:
        raise CheckpointError(f"{path}: its weights belong to other tokens:{''.join(lines)}{expected}")


def _held(tree: Any, name: str, at: str) -> list[tuple[str, Any]]:
    """The values of a name in a plain tree, the outermost, each with its path."""
    if not isinstance(tree, Mapping):
        return []
    if name in tree:
        return [(f"{at}.{name}", tree[name])]
    return [found for key, value in tree.items() for found in _held(value, name, f"{at}.{key}")]


def check_unchanged(
    saved: Checkpoint, recipe: Recipe, precision: str, fingerprint: str, *, allow: bool, report: Callable[[str], object]
) -> None:
    """Rejects, or with ``allow`` reports, what would make a resumed run differ from an uninterrupted one.

    Args:
        saved: the checkpoint.
        recipe, precision: of the resumed run.
        fingerprint: of the resumed run's data (``Data.fingerprint``).
        allow: whether changes are allowed.
        report: prints a line.

    Raises:
        CheckpointError: naming what has changed.
    """
    then = saved.plain["moekit"]
    lines = _changed(saved.plain["hyper_parameters"]["spec"], to_plain(recipe, full_names=True), "data", "seed")
    if then["precision"] != precision:
        lines.append(_change("trainer.precision", then["precision"], precision))
    if then["fingerprint"] != fingerprint:
        lines.append("\n  the contents of the data are not those that the run was trained on so far")
    found = "".join(lines)
    if found and not allow:
        raise CheckpointError(
            f"{saved.path} cannot be resumed exactly, for this has changed:{found}\n"
            "  give the run what it had, or resume it with the changes: --allow-changes"
        )
    if found:
        report(f"resumed with changes (--allow-changes):{found}")


def trained_otherwise(saved: Checkpoint, recipe: Recipe) -> str:
    """How the training of a checkpoint differs from what a recipe describes, a line for each option; empty if it fits.

    Fewer steps than the recipe's are no difference: they can be added.
    """
    spec, now = saved.plain["hyper_parameters"]["spec"], to_plain(recipe, full_names=True)
    lines = _changed(
        spec, now, "objective", "data", "optimizer", "schedule", "batch_ramp", "seed",
        "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm",
    )  # fmt: skip
    if (step := saved.plain["global_step"]) > (steps := recipe.trainer.max_steps):
        lines.append(f"\n  it has {step} steps, more than {steps}")
    return "".join(lines)


def _changed(saved: Mapping[str, Any], spec: Mapping[str, Any], *parts: str) -> list[str]:
    """What differs in some parts of two plain specs, each named by its path: a line for each value."""
    found = ((part, each) for part in parts for each in differences(_part(saved, part), _part(spec, part)))
    return [_change(f"{part}.{key}" if key else part, was, now) for part, (key, was, now) in found]


def _part(tree: Any, path: str) -> Any:
    return reduce(lambda node, key: None if node is None else node.get(key), path.split("."), tree)


def _change(key: str, was: Any, now: Any) -> str:
    return f"\n  {key}: {was!r} in the checkpoint, {now!r} now"


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
