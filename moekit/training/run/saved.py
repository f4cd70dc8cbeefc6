"""The checkpoints that ``LitMoE`` saves: opening them, and checking the form of what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import moekit
from moekit.checkpoints.files import Retention
from moekit.checkpoints.reading import Checkpoint, Handle, open_checkpoint
from moekit.checkpoints.safetensors_file import Pieces
from moekit.checkpoints.writing import save_tree
from moekit.errors import CheckpointError
from moekit.files import open_regular
from moekit.spec import to_plain
from moekit.spec.recipe import Recipe

PREFIX = "model."  # of the model's tensors in a checkpoint of ``LitMoE``
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

CALLBACKS: Mapping[str, Any] = {"SaveCheckpoints": {"best": float, "best_step": object}, "LoadHistory": {"step": int}}
"""The state of callbacks, by their names."""


def save_weights(
    path: Path, recipe: Recipe, weights: Mapping[str, Tensor], pieces: Pieces, data: Mapping[str, Any]
) -> None:
    """Saves a model that was trained elsewhere as a run's checkpoint of step 0, without an optimizer to resume.

    Args:
        path: of the checkpoint; its folder's pointer ``last`` is set to it.
        recipe: whose model it is.
        weights: on the meta device, named as in the model's ``state_dict``: their shapes and dtypes.
        pieces: makes the values of each, by that name, in order; one piece at a time is in memory.
        data: the state of the recipe's data, as ``Data.state`` returns it.

    Raises:
        SaveError: it could not be written.
    """
    tree = {
        "global_step": 0,
        "state_dict": {PREFIX + name: tensor for name, tensor in weights.items()},
        "moekit": {"version": moekit.__version__, "data": dict(data)},
        "hyper_parameters": {"spec": to_plain(recipe, full_names=True)},
    }
    begin = f"state_dict.{PREFIX}"
    save_tree(tree, path, step=0, retention=Retention(), pieces=lambda name: pieces(name.removeprefix(begin)))


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
    for name, state in checkpoint.plain["callbacks"].items():
        for callback, form in CALLBACKS.items():
            if callback in name:
                check_form(checkpoint.path, state, form, f"callbacks.{name}")
    if len(checkpoint.plain["optimizer_states"]) != 1 or checkpoint.plain["moekit"]["accumulate"] < 1:
        raise CheckpointError(f"{checkpoint.path} is not a checkpoint of a run: it has not one optimizer")
