"""Adapted modules as plain ones, for export: computed when they are read, from the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moekit.checkpoints.reading import Checkpoint, Handle
from moekit.contracts import Adapted
from moekit.params import build_on_meta
from moekit.shards import Dims, slices_of
from moekit.spec import load
from moekit.spec.kinds import AdaptedSpec, ExpertSpec
from moekit.spec.recipe import Recipe
from moekit.spec.replacing import replace_all
from moekit.training.run.saved import CkptFile
from moekit.training.run.start import PREFIX


@dataclass(frozen=True)
class Merged:
    """A parameter of a plain module, made from those of an adapted one.

    Args:
        module: the adapted one, on the meta device.
        name: of the parameter, in ``module.base``.
        held: the tensors of the module, by their names in it.
    """

    module: Adapted
    name: str
    held: Mapping[str, Handle | Tensor]

    @property
    def dtype(self) -> torch.dtype:
        """That of the base's parameter."""
        return self.held[f"base.{self.name}"].dtype

    @property
    def shape(self) -> torch.Size:
        """That of the base's parameter."""
        return self.held[f"base.{self.name}"].shape

    def read(self, offset: Dims, sizes: Dims) -> Tensor:
        """A slice; of other experts nothing is read.

        Raises:
            CheckpointError: a file is damaged.
        """

        def some(name: str, *, whole: bool = False) -> Tensor:
            each = self.held[name]
            start, rows = (0, each.shape[0]) if whole else (offset[0], sizes[0])
            rest = tuple(each.shape[1:])
            return read_slice(each, (start, *(0 for _ in rest)), (rows, *rest))

        return self.module.merged_parameter(self.name, some)[(slice(None), *slices_of(offset[1:], sizes[1:]))]


Held = Handle | Tensor | Merged


def read_slice(held: Held, offset: Dims, sizes: Dims) -> Tensor:
    """The slice of shape ``sizes`` at ``offset`` of a tensor that is in memory, in a checkpoint, or merged.

    Raises:
        CheckpointError: a file is damaged.
    """
    return held[slices_of(offset, sizes)] if isinstance(held, Tensor) else held.read(offset, sizes)


def merged_model(saved: Checkpoint | CkptFile) -> tuple[Recipe, dict[str, Held]]:
    """The recipe of a checkpoint and the tensors of its model by their names there, with plain experts.

    Raises:
        SpecError: a plugin that the recipe needs is missing.
    """
    state = saved.plain["state_dict"]
    held = {name.removeprefix(PREFIX): each for name, each in state.items() if name.startswith(PREFIX)}
    return merged(load(saved.plain["hyper_parameters"]["spec"]), held)


def merged(recipe: Recipe, held: Mapping[str, Handle | Tensor]) -> tuple[Recipe, dict[str, Held]]:
    """A recipe and the tensors of its model, with plain modules in place of adapted ones.

    Args:
        recipe: of the model.
        held: by their names in the model.
    """
    plain = replace(recipe, model=replace_all(recipe.model.plain(), ExpertSpec, _plain))
    out: dict[str, Held] = dict(held)
    if plain == recipe:
        return recipe, out
    for place, module in build_on_meta(recipe.model).named_modules():
        if isinstance(module, Adapted):
            own = {name.removeprefix(f"{place}."): out.pop(name) for name in list(out) if name.startswith(f"{place}.")}
            of_module = {name: each for name, each in own.items() if not isinstance(each, Merged)}
            for name in [name.removeprefix("base.") for name in own if name.startswith("base.")]:
                out[f"{place}.{name}"] = Merged(module, name, of_module)
    return plain, out


def _plain(experts: ExpertSpec) -> ExpertSpec:
    return experts.plain() if isinstance(experts, AdaptedSpec) else experts
