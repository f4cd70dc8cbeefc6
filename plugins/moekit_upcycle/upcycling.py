"""``moekit upcycle`` as a function: a run with a mixture from one with a dense model, or from several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from moekit.registry import current
from moekit.spec import load, to_plain
from moekit.spec.kinds import ExpertSpec
from moekit.spec.loading import parse_overrides
from moekit.spec.recipe import Recipe
from moekit.training.run.folder import RUNS, checkpoint_of
from moekit.training.run.imported import check_new, imported_files, write_run
from moekit.training.run.saved import read_checkpoint
from moekit_upcycle.upcycle import Upcycle
from moekit_upcycle.upcycle.module import UpcycleConverter

WITHOUT_EFFECT = (
    *("count", "hidden"),  # of experts: other tensors, which the converter compares
    *("init_std", "init_scale", "embedding_std", "recompute", "dropout", "input_jitter", "context"),
)
"""Options that do not change what a trained model computes in evaluation, or that tensors say."""


@dataclass(frozen=True)
class MadeRun:
    """What was made.

    Attributes:
        recipe: of the mixture.
        layers: the names of its mixtures.
        differs: why it does not compute what the dense model computes; empty if it does.
    """

    recipe: Recipe
    layers: tuple[str, ...]
    differs: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether it computes what the dense model computes."""
        return not self.differs


def upcycle(runs: Sequence[str], out: Path, overrides: Iterable[str], how: Upcycle, root: Path = RUNS) -> MadeRun:
    """Makes a run whose model is that of a dense run with mixtures in some layers.

    Options of the experts that no override states, such as their activation, are those of the dense layers.

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
    dense, overrides = load(saved["hyper_parameters"]["spec"]), list(overrides)
    start = {"start": {"run": str(out.absolute())}, "compare": None}
    recipe = load([dense, start, *_inherited(dense, overrides)], overrides)
    how = replace(how, mix=[*how.mix, *(str(checkpoint_of(run, root)) for run in runs[1:])])
    made = UpcycleConverter(how).convert(recipe.model, checkpoint)
    write_run(
        out,
        recipe,
        {name: torch.empty(each.shape, dtype=each.dtype, device="meta") for name, each in made.items()},
        lambda name: made[name].pieces(),
        saved["moekit"]["data"],
        imported_files(checkpoint, dense.start),
    )
    layers = dict.fromkeys(each.layer for each in made.values() if each.layer)
    return MadeRun(recipe, tuple(layers), tuple(_differences(dense, recipe, how)))


def _inherited(dense: Recipe, overrides: Iterable[str]) -> list[dict[str, Any]]:
    """The layer by which a mixture's experts have the options of the dense model's feed-forward layers."""
    ffn = getattr(dense.model, "ffn", None)
    over = [tree.data.get("model") or {} for tree in parse_overrides(overrides, current())]
    if not isinstance(ffn, ExpertSpec) or not any("moe" in model for model in over):
        return []
    node: Any = to_plain(ffn, full_names=True)
    return [{"model": {"moe": {"experts": {k: v for k, v in node.items() if k not in ("count", "hidden")}}}}]


def _differences(dense: Recipe, recipe: Recipe, how: Upcycle) -> Iterator[str]:
    """Why the mixture does not compute what the dense model computes, each in a few words."""
    if how.redraw:
        yield f"redraw={how.redraw:g} initialises units anew"
    if how.noise:
        yield f"noise={how.noise:g} changes the experts' weights"
    if how.mix:
        yield f"it is made of {1 + len(how.mix)} models"
    one, other = (_options(to_plain(each.model, full_names=True)) for each in (dense, recipe))
    for path in dict.fromkeys([*one, *other]):
        experts = path.startswith("moe.experts.")
        was = one.get(f"ffn.{path.removeprefix('moe.experts.')}" if experts else path)
        if (experts or not path.startswith("moe")) and other.get(path) != was:
            yield f"model.{path}={other.get(path)}, but {was} in the dense model"
    moe: Any = getattr(recipe.model, "moe", None)
    if not moe.dispatcher.dropless:
        yield "model.moe.dispatcher drops what is beyond its capacity"
    if moe.gate_on != "output":
        yield f"model.moe.gate_on={moe.gate_on} multiplies what experts read"


def _options(node: Any, path: str = "") -> dict[str, Any]:
    """The options by path that change what a trained model computes."""
    if not isinstance(node, dict):
        return {path: node}
    below = [_options(each, f"{path}.{key}".lstrip(".")) for key, each in node.items() if key not in WITHOUT_EFFECT]
    return {name: value for options in below for name, value in options.items()}
