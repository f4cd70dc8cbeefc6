"""An optimizer's state by the names of parameters, so that a checkpoint fits however they are laid out and grouped.

torch numbers the parameters of an optimizer in the order of its groups, and a sharded model's are grouped otherwise
than a whole one's. Here the two hooks that torch offers translate, so that any strategy of Lightning saves names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from moekit.checkpoints.reading import Handle
from moekit.errors import CheckpointError
from moekit.parallel.reduced import reduced_by, reduced_place
from moekit.parallel.sharding import shards_of, state_shards_of
from moekit.shards.shard import Box, Place, region

SHOWN = 5  # names in a message
State = dict[str, Any]


def keep_by_name(optimizer: Optimizer, model: nn.Module) -> None:
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
    held = state_shards_of(model, optimizer)
    return {
        "state": {n: {k: _plain(v) for k, v in held[n].items()} for n in names if n in held},
        "param_groups": groups,
    }


def _plain(value: Any) -> Any:
    return value.tensor if isinstance(value, Box) and value.sizes == value.global_shape else value


def _numbered(optimizer: Optimizer, state: State, model: nn.Module) -> State:
    """The state of the named parameters for this optimizer, laid out as its parameters are.

    Raises:
        CheckpointError: it is of other parameters.
    """
    name_of = {p: name for name, p in model.named_parameters()}
    boxes, reduced = shards_of(model), reduced_by(optimizer)
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


def _laid_out(value: Any, p: nn.Parameter, box: Box, reduced: int | None) -> Any:
    if not isinstance(value, Tensor | Handle):
        return value
    if reduced is not None:
        _, offset, sizes = reduced_place(box, reduced)
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


def _read(value: Tensor | Handle, offset: Place, sizes: Place) -> Tensor:
    return value.read(offset, sizes) if isinstance(value, Handle) else value[region(offset, sizes)]


def _distributed(local: Tensor, like: DTensor) -> DTensor:
    with torch.no_grad():
        made = DTensor.from_local(
            local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
    assert isinstance(made, DTensor)
    return made
