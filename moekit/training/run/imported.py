"""Saving a model that was not trained here as a run's checkpoint, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

import moekit
from moekit.checkpoints.files import Retention
from moekit.checkpoints.safetensors_file import Pieces
from moekit.checkpoints.writing import save_tree
from moekit.spec import to_plain
from moekit.spec.recipe import Recipe
from moekit.training.run.start import PREFIX


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
