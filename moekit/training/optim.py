"""The recipe's optimizer and schedule, and the optimizer's state by the names of parameters.

torch numbers the parameters of an optimizer in the order of its groups, and a sharded model's are grouped otherwise
than a whole one's. Two hooks that torch offers translate numbers to names, so that a checkpoint fits any layout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from moekit.checkpoints.reading import Handle
from moekit.compat import resume_schedule
from moekit.contracts import Model
from moekit.errors import CheckpointError
from moekit.registry import build
from moekit.shards.shard import (
    Dims,
    TensorShard,
    optimizer_state_shards,
    parameter_shards,
    reduced_bounds,
    reduced_dims,
    slices_of,
)
from moekit.spec.recipe import Recipe


def optimizer_of(recipe: Recipe, model: Model, steps: int) -> Any:
    """The recipe's optimizer; with its schedule, where there is one, to be stepped once per optimizer step.

    Args:
        recipe: has an optimizer.
        model: whose parameters move.
        steps: length of the run.
    """
    optimizer = build(recipe.optimizer, model)  # type: ignore[arg-type]
    split_by_layout(optimizer)
    save_by_name(optimizer, model)
    if recipe.schedule is None:
        return optimizer
    factor = build(recipe.schedule, steps)
    scheduler = StepSchedule(optimizer, lambda step: float(factor(step)))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class StepSchedule(torch.optim.lr_scheduler.LambdaLR):
    """A schedule whose state is the step alone: rates are the optimizer's, whose groups are cut by layout."""

    def state_dict(self) -> dict[str, Any]:
        """The step."""
        return {"step": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back. The optimizer has its state already: its rates, and those they began with."""
        resume_schedule(self, int(state_dict["step"]))


def split_by_layout(optimizer: torch.optim.Optimizer) -> None:
    """Cuts param groups until all parameters of one lie alike: kernels over many tensors take no mixture of layouts.

    Parts keep the options of their group, and their order. A plain model's groups stay as they are.
    """
    groups = []
    for group in optimizer.param_groups:
        parts: dict[Any, list[torch.nn.Parameter]] = {}
        for p in group["params"]:
            parts.setdefault(p.device_mesh if isinstance(p, DTensor) else None, []).append(p)
        groups += [{**group, "params": part} for part in parts.values()]
    optimizer.param_groups[:] = groups


SHOWN = 5  # names in a message
State = dict[str, Any]


def save_by_name(optimizer: Optimizer, model: nn.Module) -> None:
    """Has ``state_dict`` give, and ``load_state_dict`` take, names in place of numbers.

    A state that a parameter's shape has is a ``Box`` where the parameter is a piece, and is read as one: from a tensor,
    or a ``Handle`` of which each rank then reads its slice alone. So is one that is reduced along a dimension.

    Args:
        optimizer: moves parameters of ``model``.
        model: names them.
    """
    optimizer.register_state_dict_post_hook(lambda opt, state: _named(opt, state, model))
    optimizer.register_load_state_dict_pre_hook(lambda opt, state: _numbered(opt, state, model))


def _named(optimizer: Optimizer, state: State, model: nn.Module) -> State:
    name_of = {p: name for name, p in model.named_parameters()}
    names = [name_of[p] for group in optimizer.param_groups for p in group["params"]]
    groups = [{**group, "params": [names[i] for i in group["params"]]} for group in state["param_groups"]]
    held = optimizer_state_shards(model, optimizer)
    return {
        "state": {n: {k: _plain(v) for k, v in held[n].items()} for n in names if n in held},
        "param_groups": groups,
    }


def _plain(value: Any) -> Any:
    return value.tensor if isinstance(value, TensorShard) and value.sizes == value.global_shape else value


def _numbered(optimizer: Optimizer, state: State, model: nn.Module) -> State:
    """The state of the named parameters for this optimizer, laid out as its parameters are.

    Raises:
        CheckpointError: it is of other parameters.
    """
    name_of = {p: name for name, p in model.named_parameters()}
    boxes, reduced = parameter_shards(model), reduced_dims(optimizer)
    saved_group = {name: group for group in state["param_groups"] for name in group["params"]}
    held = {name_of[p] for group in optimizer.param_groups for p in group["params"]}
    if strays := sorted(held.symmetric_difference(saved_group)):
        more = f", and {len(strays) - SHOWN} more" if len(strays) > SHOWN else ""
        raise CheckpointError(f"the optimizer's state is of other parameters: {', '.join(strays[:SHOWN])}{more}")
    numbered: State = {"state": {}, "param_groups": []}
    at = 0
    for group in optimizer.param_groups:
        first = saved_group[name_of[group["params"][0]]] if group["params"] else group
        numbered["param_groups"].append({**first, "params": list(range(at, at + len(group["params"])))})
        for p in group["params"]:
            if saved := state["state"].get(name_of[p]):
                box = boxes[name_of[p]]
                numbered["state"][at] = {k: _laid_out(v, p, box, reduced.get(k)) for k, v in saved.items()}
            at += 1
    return numbered


def _laid_out(value: Any, p: nn.Parameter, box: TensorShard, reduced: int | None) -> Any:
    if not isinstance(value, Tensor | Handle):
        return value
    if reduced is not None:
        _, offset, sizes = reduced_bounds(box, reduced)
        return _read(value, offset, sizes)
    offset, sizes = (0,) * len(value.shape), tuple(value.shape)
    if sizes == box.global_shape:
        offset, sizes = box.offset, box.sizes
    elif not isinstance(p, DTensor) and sizes[:1] == box.global_shape[:1]:  # a row for each expert, of those held here
        offset, sizes = (box.offset[:1] + offset[1:]), (box.sizes[:1] + sizes[1:])
    held = _read(value, offset, sizes)
    if isinstance(p, DTensor) and tuple(value.shape) == box.global_shape:
        return _distributed(held.to(p.device), p)
    return held


def _read(value: Tensor | Handle, offset: Dims, sizes: Dims) -> Tensor:
    return value.read(offset, sizes) if isinstance(value, Handle) else value[slices_of(offset, sizes)]


def _distributed(local: Tensor, like: DTensor) -> DTensor:
    with torch.no_grad():
        made = DTensor.from_local(
            local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
    assert isinstance(made, DTensor)
    return made
