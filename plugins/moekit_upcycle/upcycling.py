"""``moekit upcycle`` as a function: a run with a mixture from one with a dense model, or from several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from moekit.spec import load
from moekit.spec.recipe import Recipe
from moekit.training.run.folder import RUNS, checkpoint_of
from moekit.training.run.imported import check_new, imported_files, write_run
from moekit.training.run.saved import read_checkpoint
from moekit_upcycle.upcycle import Upcycle
from moekit_upcycle.upcycle.module import UpcycleConverter


@dataclass(frozen=True)
class MadeRun:
    """What was made.

    Attributes:
        recipe: of the mixture.
        layers: the names of its mixtures.
        exact: whether it computes what the dense model computes.
    """

    recipe: Recipe
    layers: tuple[str, ...]
    exact: bool


def upcycle(runs: Sequence[str], out: Path, overrides: Iterable[str], how: Upcycle, root: Path = RUNS) -> MadeRun:
    """Makes a run whose model is that of a dense run with mixtures in some layers.

    Args:
        runs: the dense run: its folder, a checkpoint, or its name. Of several, whose models must have one form and one
            vocabulary, experts are taken by turns, and all other weights are their mean.
        out: the new run's folder, which must not exist yet.
        overrides: over the dense run's recipe; they name the mixtures below ``model.moe``.
        how: how experts are made.
        root: folder of all runs.

    Raises:
        MoekitError: the model is not dense, or the mixture cannot be made from it; nothing has been written.
        CheckpointError: there is no such run, or it is damaged.
    """
    check_new(out)
    checkpoint = checkpoint_of(runs[0], root)
    saved = read_checkpoint(checkpoint).plain
    start = {"start": {"run": str(out.absolute())}, "compare": None}
    recipe = load([saved["hyper_parameters"]["spec"], start], overrides)
    how = replace(how, mix=[*how.mix, *(str(checkpoint_of(run, root)) for run in runs[1:])])
    made = UpcycleConverter(how).convert(recipe.model, checkpoint)
    first = saved["hyper_parameters"]["spec"].get("start") or {}
    write_run(
        out,
        recipe,
        {name: torch.empty(each.shape, dtype=each.dtype, device="meta") for name, each in made.items()},
        lambda name: made[name].pieces(),
        saved["moekit"]["data"],
        imported_files(checkpoint, first.get("run", "")),
    )
    layers = dict.fromkeys(each.layer for each in made.values() if each.layer)
    return MadeRun(recipe, tuple(layers), exact=not (how.redraw or how.noise or how.mix))
