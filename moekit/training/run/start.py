"""Starting from another run's weights: fine-tuning.

Source: Zoph et al. 2022, ST-MoE (arXiv 2202.08906, section 4): moving all but the mixtures' own parameters is about as
good as moving all; moving the mixtures' alone fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from moekit.checkpoints.reading import Handle
from moekit.contracts import Data
from moekit.errors import CheckpointError, Problem, SpecError
from moekit.layer import MoELayer
from moekit.parallel.launch import decide_on_rank_zero
from moekit.shards.shard import fill_shards, state_dict_shards
from moekit.spec.recipe import Recipe, Start
from moekit.training.run.folder import RUNS, checkpoint_of
from moekit.training.run.resume import read_checkpoint

SHOWN = 5  # names in a message
PREFIX = "model."  # of the model's tensors in a checkpoint of ``LitMoE``
KEEP = {"all": "", "experts": "all but routed experts and routers", "others": "routed experts and routers"}


class StartingPoint:
    """What a recipe's ``start`` asks for: which parameters move, and whose weights they begin with.

    Args:
        start: the recipe's; None changes nothing.
    """

    def __init__(self, start: Start | None) -> None:
        self.start = start
        self._moving: int | None = None
        self._loaded = self._taught = start is None

    def freeze(self, model: nn.Module) -> None:
        """Takes ``requires_grad`` from parameters that do not move, also where a checkpoint is gone on from.

        An optimizer made of the model leaves them out. Balancers go on balancing: their state is no parameter.

        Raises:
            SpecError: the experts are to move, or to stay, and there are none.
        """
        if self.start is not None and self.start.update != "all":
            experts = {id(p) for p in expert_parameters(model)}
            if not experts:
                what = f"start.update={self.start.update}: the model has no layer of routed experts"
                raise SpecError([Problem(what=f"{what} to tell from the others", at="start.update", expected="all")])
            for parameter in model.parameters():
                if (id(parameter) in experts) != (self.start.update == "experts"):
                    parameter.requires_grad_(False)  # and what a model keeps fixed for good is not set free
        self._moving = sum(p.numel() for p in model.parameters() if p.requires_grad)

    def teach(self, data: Data, restored: Mapping[str, Any] | None) -> None:
        """Gives the data the vocabulary that the weights were trained with, once.

        Args:
            data: of the new run, not prepared yet if it learns a vocabulary.
            restored: not None where a checkpoint of the new run itself is gone on from: it knows its vocabulary.

        Raises:
            CheckpointError: no such run.
            DataError: its vocabulary is of another kind of token.
        """
        if self._taught or restored is not None or self.start is None:
            return
        if state := read_checkpoint(checkpoint_of(self.start.run, RUNS)).plain["moekit"].get("data"):
            data.load_state(state)
        self._taught = True

    def load(self, model: nn.Module, restored: Mapping[str, Any] | None) -> None:
        """Loads the weights, once; of a model in shards each rank takes its own.

        Args:
            model: the new run's.
            restored: not None where a checkpoint of the new run itself is gone on from: nothing is loaded then.

        Raises:
            CheckpointError: no such run; or its weights are not all of the model's, by name and shape.
        """
        if self._loaded or restored is not None or self.start is None:
            return
        path = checkpoint_of(self.start.run, RUNS)
        contents = read_checkpoint(path).plain
        saved = {k.removeprefix(PREFIX): v for k, v in contents["state_dict"].items() if k.startswith(PREFIX)}
        boxes = state_dict_shards(model)
        check_weights_fit(path, saved, {name: box.global_shape for name, box in boxes.items()})
        fill_shards(list(boxes.values()), lambda name, offset, sizes: saved[name].read(offset, sizes))
        self._loaded = True

    def describe(self) -> str:
        """Whose weights, and how many parameters move, in a line; empty without a ``start``."""
        if self.start is None:
            return ""
        kept = KEEP[self.start.update]
        moving = "" if self._moving is None else f", {self._moving:,} parameters move"
        told = f"; {kept} stay as they are{moving}" if kept else ""
        return f"the weights of {self.start.run}{told}"


def expert_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of every mixture layer's routed experts and router; shared experts are no part of them."""
    layers = [layer for layer in model.modules() if isinstance(layer, MoELayer)]
    return [p for layer in layers for part in (layer.experts, layer.router) for p in part.parameters()]


def with_checkpoint_path(recipe: Recipe, root: Path) -> Recipe:
    """The recipe with the checkpoint's path for ``start.run``: what is 'the latest run' today is another tomorrow.

    Raises:
        CheckpointError: no such run below ``root``.
    """
    if recipe.start is None:
        return recipe
    asked = recipe.start.run
    path = decide_on_rank_zero("start_run", lambda: checkpoint_of(asked, root).as_posix())
    return replace(recipe, start=replace(recipe.start, run=path))


def check_weights_fit(path: Path, saved: Mapping[str, Handle], model: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses weights that are not all of a model's: nothing is loaded in part.

    Args:
        path: the checkpoint, for the message.
        saved: its tensors by name.
        model: the shapes of the model's.

    Raises:
        CheckpointError: naming the first tensors that are missing, left over, or of another shape.
    """
    other = [name for name in model if name in saved and saved[name].shape != model[name]]
    parts = {
        "not in the checkpoint": [name for name in model if name not in saved],
        "not in the model": [name for name in saved if name not in model],
        "of another shape": [f"{n} {list(saved[n].shape)} there, {list(model[n])} here" for n in other],
    }
    lines = [f"  {what}: {_first(names)}\n" for what, names in parts.items() if names]
    if lines:
        raise CheckpointError(
            f"cannot start from {path}: its weights are not those of this model\n{''.join(lines)}"
            "  give both recipes the same model (options without weights, such as dropout, may differ)"
        )


def _first(names: list[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
