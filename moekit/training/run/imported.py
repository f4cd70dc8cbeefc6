"""A run of a model that was not trained here: imported, or made from other runs; saved tensor by tensor."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

import moekit
from moekit.checkpoints.files import Retention, step_name
from moekit.checkpoints.safetensors_file import Pieces
from moekit.checkpoints.writing import save_tree
from moekit.errors import MoekitError
from moekit.files import make_directory, write_if_changed
from moekit.spec import dump, to_plain
from moekit.spec.recipe import Recipe
from moekit.training.run.folder import RunFolder
from moekit.training.run.start import PREFIX


def write_run(
    out: Path,
    recipe: Recipe,
    weights: Mapping[str, Tensor],
    pieces: Pieces,
    data: Mapping[str, Any],
    files: Iterable[Path] = (),
) -> None:
    """Writes a new run whose model was not trained here, at step 0; nothing stays of one that fails.

    Args:
        out: the run's folder, which must be empty or not exist; it counts as a run once everything is in it.
        recipe: as in ``save_weights``, as are ``weights``, ``pieces`` and ``data``.
        files: copied to the folder's ``imported``.

    Raises:
        MoekitError: the folder has something in it.
        SaveError: the checkpoint could not be written.
        OSError: another file could not be.
    """
    check_new(out)
    folder = RunFolder(out)
    try:
        make_directory(folder.checkpoints)
        for file in files:
            make_directory(folder.imported)
            shutil.copyfile(file, folder.imported / file.name)
        save_weights(folder.checkpoints / step_name(0), recipe, weights, pieces, data)
        write_if_changed(folder.spec, dump(recipe, full_names=True))
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def check_new(out: Path) -> None:
    """Rejects the folder of a new run if something is in it.

    Raises:
        MoekitError: there is.
    """
    if out.exists() and any(out.iterdir()):
        raise MoekitError(f"{out} exists already\n  give another folder, or remove it")


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
