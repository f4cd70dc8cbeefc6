"""Fine-tuning: starting from another run's weights.

Source: Zoph et al. 2022, ST-MoE (arXiv 2202.08906, section 4): training all but the experts and routers is about as
good as training everything; training only experts and routers fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from moekit.checkpoints.reading import Handle
from moekit.contracts import Data
from moekit.errors import CheckpointError, Problem, SpecError
from moekit.moe_layer import MoELayer
from moekit.parallel.launch import decide_on_rank_zero
from moekit.shards import fill_shards, state_dict_shards
from moekit.spec.recipe import Recipe, Start
from moekit.training.optim import first_few
from moekit.training.run.folder import RUNS, checkpoint_of
from moekit.training.run.saved import read_checkpoint

PREFIX = "model."  # of the model's tensors in a checkpoint of ``LitMoE``
FROZEN = {"all": "", "experts": "all but routed experts and routers", "others": "routed experts and routers"}


def freeze(model: nn.Module, start: Start | None) -> None:
    """Clears ``requires_grad`` of the parameters that are not trained, also in a resumed run.

    The model's optimizer then skips them. Balancers stay active: their state is in buffers, not parameters.

    Raises:
        SpecError: ``update`` names experts, and the model has none.
    """
    if start is None or start.update == "all":
        return
    experts = {id(p) for p in expert_parameters(model)}
    if not experts:
        what = f"start.update={start.update}: the model has no layer of routed experts"
        raise SpecError([Problem(what=what, at="start.update", expected="all")])
    for parameter in model.parameters():
        if (id(parameter) in experts) != (start.update == "experts"):
            parameter.requires_grad_(False)  # never set to True: a model may have fixed parameters


def load_vocabulary(data: Data, start: Start) -> None:
    """Loads the vocabulary that the weights were trained with into the data, before it is prepared.

    Raises:
        CheckpointError: no such run.
        DataError: its vocabulary is of another kind of token.
    """
    if state := read_checkpoint(checkpoint_of(start.run, RUNS)).plain["moekit"].get("data"):
        data.load_state(state)


def load_weights(model: nn.Module, start: Start) -> None:
    """Loads the weights into a new run's model; each rank loads its shards.

    Raises:
        CheckpointError: no such run; or its weights differ from the model's in name or shape.
        SpecError: ``fresh`` names a part that the model lacks.
    """
    path = checkpoint_of(start.run, RUNS)
    contents = read_checkpoint(path).plain
    saved = {k.removeprefix(PREFIX): v for k, v in contents["state_dict"].items() if k.startswith(PREFIX)}
    every, fresh = state_dict_shards(model), start.fresh
    if unknown := [word for word in fresh if not any(_names_part(name, [word]) for name in [*every, *saved])]:
        what = f"start.fresh: no tensor has '{unknown[0]}' in its name"
        words = dict.fromkeys(part for name in every for part in name.split(".")[:-1] if not part.isdigit())
        raise SpecError([Problem(what=what, at="start.fresh", expected=", ".join(words))])
    # A balancer that the run lacks begins as it does in any new run; one that is removed must be named.
    new = [name for name in every if "balancers" in name.split(".") and name not in saved]
    shards = {name: shard for name, shard in every.items() if not _names_part(name, fresh) and name not in new}
    there = {name: each for name, each in saved.items() if not _names_part(name, fresh)}
    check_weights_fit(path, there, {name: shard.global_shape for name, shard in shards.items()})
    fill_shards(list(shards.values()), lambda name, offset, sizes: saved[name].read(offset, sizes))


def describe(start: Start, model: nn.Module | None) -> str:
    """Whose weights, and how many parameters of the model, if it is built, are trained, in a line."""
    text = f"the weights of {start.run}"
    if frozen := FROZEN[start.update]:
        text += f"; {frozen} are frozen"
        if model is not None:
            text += f", {sum(p.numel() for p in model.parameters() if p.requires_grad):,} parameters are trained"
    return text


def _names_part(name: str, words: Sequence[str]) -> bool:
    """Whether one of the words is a part of a tensor's name."""
    return any(word in name.split(".") for word in words)


def expert_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the routed experts and routers of all MoE layers, without shared experts."""
    layers = [layer for layer in model.modules() if isinstance(layer, MoELayer)]
    return [p for layer in layers for part in (layer.experts, layer.router) for p in part.parameters()]


def with_checkpoint_path(recipe: Recipe, root: Path) -> Recipe:
    """The recipe with ``start.run`` replaced by a checkpoint's path, since a name's latest run changes over time.

    Raises:
        CheckpointError: no such run below ``root``.
    """
    if recipe.start is None:
        return recipe
    run = recipe.start.run
    path = decide_on_rank_zero("start_run", lambda: checkpoint_of(run, root).as_posix())
    return replace(recipe, start=replace(recipe.start, run=path))


def check_weights_fit(path: Path, saved: Mapping[str, Handle], model: Mapping[str, tuple[int, ...]]) -> None:
    """Rejects a checkpoint's tensors that differ from a model's shapes, by name: nothing is loaded partially.

    Raises:
        CheckpointError: naming the first tensors that are missing, unknown, or of another shape.
    """
    other = [name for name in model if name in saved and saved[name].shape != model[name]]
    parts = {
        "not in the checkpoint": [name for name in model if name not in saved],
        "not in the model": [name for name in saved if name not in model],
        "of another shape": [f"{n} {list(saved[n].shape)} there, {list(model[n])} here" for n in other],
    }
    lines = [f"  {what}: {first_few(names)}\n" for what, names in parts.items() if names]
    if lines:
        raise CheckpointError(
            f"cannot start from {path}: its weights are not those of this model\n{''.join(lines)}"
            "  give both recipes the same model (options without weights, such as dropout, may differ)"
        )
