"""``moekit prune`` as a function: a run with fewer experts, those of the highest saliency in each layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import moekit
from moekit.checkpoints.reading import Handle
from moekit.contracts import Batch, Model, Objective
from moekit.errors import MoekitError
from moekit.params import build_on_meta
from moekit.registry import build
from moekit.spec import load
from moekit.spec.fields import ConflictError
from moekit.spec.kinds import MoE
from moekit.spec.recipe import Recipe, Start
from moekit.spec.replacing import replace_all
from moekit.training.run.folder import RUNS, checkpoint_of
from moekit.training.run.imported import check_new, imported_files, write_run
from moekit.training.run.saved import read_checkpoint
from moekit.training.run.start import PREFIX, load_vocabulary
from moekit_upcycle.saliency import Saliency, saliency


@dataclass(frozen=True)
class Pruned:
    """What was made.

    Attributes:
        recipe: of the smaller mixture.
        layers: the saliency of each layer's experts.
        kept: the experts of each layer that are left, in order.
        before, after: the loss of both models on the same text, a token.
    """

    recipe: Recipe
    layers: Mapping[str, Saliency]
    kept: Mapping[str, list[int]]
    before: float
    after: float


def prune(run: str, out: Path, keep: int, overrides: Sequence[str] = (), root: Path = RUNS) -> Pruned:
    """Makes a run with ``keep`` experts in every mixture, which are as they were.

    Args:
        run: its folder, a checkpoint, or its name.
        out: the new run's folder, which must not exist yet.
        keep: experts of each layer.
        overrides: ``data.option=value``: the text on which experts are judged; default: the run's validation set.
        root: folder of all runs.

    Raises:
        MoekitError: the model cannot be made smaller so; nothing has been written.
        CheckpointError: there is no such run, or it is damaged.
    """
    check_new(out)
    checkpoint = checkpoint_of(run, root)
    recipe, batches, model, objective = opened(checkpoint, overrides)
    smaller = _with_experts(recipe, keep, out)
    layers = saliency(model, batches)
    kept = {name: _best(each, keep, _groups_of(model, name)) for name, each in layers.items()}
    saved = read_checkpoint(checkpoint).plain
    held = {name.removeprefix(PREFIX): h for name, h in saved["state_dict"].items() if name.startswith(PREFIX)}
    shapes = {name: tuple(each.shape) for name, each in build_on_meta(smaller.model).state_dict().items()}
    _check(recipe, shapes, held, kept)
    weights = {name: torch.empty(shape, dtype=held[name].dtype, device="meta") for name, shape in shapes.items()}
    write_run(
        out,
        smaller,
        weights,
        lambda name: _pieces(held[name], shapes[name], _kept_of(name, kept)),
        saved["moekit"]["data"],
        imported_files(checkpoint, recipe.start),
    )
    before, after = (_loss(each, objective, batches) for each in (model, moekit.open(out).model.eval()))
    return Pruned(smaller, layers, kept, before, after)


def opened(checkpoint: Path, overrides: Sequence[str]) -> tuple[Recipe, list[Batch], Model, Objective]:
    """A run's recipe, some text, the model in evaluation mode, and its objective.

    Args:
        checkpoint: of the run.
        overrides: ``data.option=value``. Another kind of data keeps the run's tokenizer.

    Raises:
        MoekitError: an override is not of the data, or there is none.
        CheckpointError: the checkpoint is damaged.
    """
    if strays := [text for text in overrides if not text.startswith(("data.", "data="))]:
        raise MoekitError(
            f"'{strays[0]}' changes more than the data\n  expected data.option=value: the model is trained"
        )
    module = moekit.open(checkpoint).module
    recipe = module.recipe
    if recipe.data is None or module.data is None:
        raise MoekitError("the run has no data to judge experts on\n  expected data.use=text_files data.path=FOLDER")
    data = module.data
    if overrides:
        weights = {"start": {"run": checkpoint.as_posix()}, "compare": None}  # so that other data keeps their tokenizer
        changed = load([recipe, weights], overrides)
        assert changed.start is not None
        data = build(changed.data)
        load_vocabulary(data, changed.data, changed.start)
    data.prepare()
    return recipe, list(data.validation_batches()), module.model.eval(), module.objective


def _with_experts(recipe: Recipe, keep: int, out: Path) -> Recipe:
    """The recipe of the smaller model, which starts from its own weights.

    Raises:
        MoekitError: it has no mixture, or no more experts than are to be kept.
    """
    counts: list[int] = []

    def fewer(moe: MoE) -> MoE:
        counts.append(moe.experts.count)
        _check_groups(moe, keep)
        try:
            return replace(moe, experts=replace(moe.experts, count=keep))
        except ConflictError as error:
            raise MoekitError(f"--keep {keep}: {error}") from error

    if not 1 <= keep:
        raise MoekitError(f"--keep {keep}: expected at least 1")
    smaller = replace_all(recipe.model, MoE, fewer)
    if not counts or keep >= min(counts):
        raise MoekitError(
            f"--keep {keep}: the model's layers have {sorted(set(counts)) or 'no'} experts; expected fewer"
        )
    return replace(recipe, model=smaller, start=Start(run=str(out.absolute())), compare=None)


def _check_groups(moe: MoE, keep: int) -> None:
    """Checks that every group of the router keeps as many experts: a token chooses groups first.

    Raises:
        MoekitError: with the nearest numbers that would do.
    """
    groups = moe.router.group_limit().groups
    if not keep % groups:
        return
    fit = [n for n in range(groups, moe.experts.count, groups) if not list(moe.router.check_experts(n))]
    near = [str(n) for n in (*[n for n in fit if n < keep][-1:], *[n for n in fit if n > keep][:1])]
    raise MoekitError(
        f"--keep {keep}: the router's {groups} groups of experts must keep equally many\n"
        f"  expected --keep {' or '.join(near) or f'a multiple of {groups}: of {moe.experts.count} experts, none fits'}"
    )


def _groups_of(model: Model, layer: str) -> int:
    spec = model.get_submodule(layer).spec
    return spec.router.group_limit().groups if isinstance(spec, MoE) else 1


def _best(layer: Saliency, keep: int, groups: int) -> list[int]:
    """The experts of highest saliency, as many of each group, in order: none moves to another group."""
    size = len(layer.load_E) // groups
    best_GX = layer.mean_E.view(groups, size).argsort(dim=1, descending=True, stable=True)[:, : keep // groups]
    return sorted((best_GX + size * torch.arange(groups)[:, None]).flatten().tolist())


def _check(
    recipe: Recipe, shapes: Mapping[str, tuple[int, ...]], held: Mapping[str, Handle], kept: Mapping[str, list[int]]
) -> None:
    """Checks that every tensor has rows to be removed, or stays as it is.

    Raises:
        MoekitError: a layer was not judged, or its router has no row for each expert.
    """
    if set(shapes) != set(held):
        raise MoekitError(f"'{min(set(shapes) ^ set(held))}' is in one of the two models alone")
    cut = [name for name, shape in shapes.items() if shape != tuple(held[name].shape)]
    for name in cut:
        if not _kept_of(name, kept):
            raise MoekitError(f"'{name}' is in a layer in which tokens do not choose experts, or that read no text")
    for layer in kept:
        if not any(name.startswith(f"{layer}.router.") for name in cut):
            raise MoekitError(f"{layer}.router: it has no row for each expert, so none can be removed")


def _kept_of(name: str, kept: Mapping[str, list[int]]) -> list[int]:
    return next((experts for layer, experts in kept.items() if name.startswith(f"{layer}.")), [])


def _pieces(held: Handle, shape: tuple[int, ...], kept: list[int]) -> Iterator[Tensor]:
    """A tensor without the rows of removed experts, one expert at a time."""
    old = tuple(held.shape)
    if old == shape:
        yield held.whole()
    elif old[1:] == shape[1:]:
        for expert in kept:
            yield held.read((expert, *(0 for _ in old[1:])), (1, *old[1:]))
    else:
        whole = held.whole()
        for dim, (before, after) in enumerate(zip(old, shape, strict=True)):
            if before != after:
                whole = whole.index_select(dim, torch.tensor(kept))
        yield whole


@torch.no_grad()
def _loss(model: Model, objective: Objective, batches: Iterable[Batch]) -> float:
    sums = [objective(model.on(batch), batch) for batch in batches]
    parts = [each.metrics.get("loss", (each.total, each.count)) for each in sums]
    return float(sum(total for total, _ in parts) / sum(count for _, count in parts))
