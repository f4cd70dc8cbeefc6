"""A run of a model that was not trained here: imported, or made from other runs; saved tensor by tensor."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

import moekit
from moekit.checkpoints.files import Retention, step_name
from moekit.checkpoints.safetensors_file import Pieces
from moekit.checkpoints.writing import save_tree
from moekit.errors import MoekitError
from moekit.files import make_directory, write_if_changed
from moekit.registry import current
from moekit.spec import dump, to_plain
from moekit.spec.layers import open_source
from moekit.spec.recipe import Recipe, Start
from moekit.training.run.folder import SPEC, RunFolder
from moekit.training.run.start import PREFIX


def write_run(
    out: Path,
    recipe: Recipe,
    weights: Mapping[str, Tensor],
    pieces: Pieces,
    data: Mapping[str, Any],
    files: Iterable[Path] = (),
) -> None:
    """Writes a new run at step 0, without an optimizer to resume; nothing stays of one that fails.

    Args:
        out: the run's folder, which must be empty or not exist; it counts as a run once everything is in it.
        recipe: whose model it is.
        weights: on the meta device, named as in the model's ``state_dict``: their shapes and dtypes.
        pieces: makes the values of each, by that name, in order; one piece at a time is in memory.
        data: the state of the recipe's data, as ``Data.state`` returns it.
        files: copied to the folder's ``imported``.

    Raises:
        MoekitError: the folder has something in it.
        SaveError: the checkpoint could not be written.
        OSError: another file could not be.
    """
    check_new(out)
    folder = RunFolder(out)
    tree = {
        "global_step": 0,
        "state_dict": {PREFIX + name: tensor for name, tensor in weights.items()},
        "moekit": {"version": moekit.__version__, "data": dict(data)},
        "hyper_parameters": {"spec": to_plain(recipe, full_names=True)},
    }
    path, begin = folder.checkpoints / step_name(0), f"state_dict.{PREFIX}"
    try:
        make_directory(folder.checkpoints)
        for file in files:
            make_directory(folder.imported)
            shutil.copyfile(file, folder.imported / file.name)
        save_tree(tree, path, step=0, retention=Retention(), pieces=lambda name: pieces(name.removeprefix(begin)))
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


def imported_files(checkpoint: Path, start: Start | None) -> Sequence[Path]:
    """The files that came with a model: those of its run, or else of the run that it started from, and so on.

    Args:
        checkpoint: of the model.
        start: of its recipe.

    Raises:
        SpecError: the spec of one of these runs cannot be read.
    """
    place, run, seen = checkpoint.absolute(), "" if start is None else start.run, set[Path]()
    while place not in seen:  # an imported run starts from itself
        seen.add(place)
        if (folder := _folder_of(place)) is not None and folder.imported.is_dir():
            return sorted(folder.imported.iterdir())
        # a relative path begins where the command ran: in a folder above the run's own
        above = [path / run for path in (Path(), *place.parents) if run and (path / run).exists()]
        place = above[0].absolute() if above else place
        run = _start_of(_folder_of(place))
    return ()


def _folder_of(place: Path) -> RunFolder | None:
    """The run that a checkpoint, or a folder, is of."""
    return next((RunFolder(path) for path in (place, *place.parents) if (path / SPEC).is_file()), None)


def _start_of(folder: RunFolder | None) -> str:
    """What a run started from; its spec is not built, so that it may need plugins that are missing."""
    given = None if folder is None else open_source(folder.spec, current()).tree.data.get("start")
    return str(given["run"]) if isinstance(given, dict) and "run" in given else ""
