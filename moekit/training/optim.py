"""The recipe's optimizer and schedule; the optimizer's state is saved by parameter name.

torch numbers an optimizer's parameters in the order of its groups, and a sharded model has other groups than a whole
one. Two hooks of torch's optimizers translate numbers to names and back, so that a checkpoint fits any layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
from moekit.shards import (
    Dims,
    TensorShard,
    optimizer_state_shards,
    parameter_shards,
    reduced_bounds,
    reduced_dims,
    slices_of,
)
from moekit.spec.recipe import Recipe
from moekit.training.components import check_optimizer, checked_schedule


def optimizer_of(recipe: Recipe, model: Model, steps: int) -> Any:
    """The recipe's optimizer, and its schedule if any, for a run of ``steps`` steps, in Lightning's format.

    Raises:
        PluginError: what a plugin built is not an optimizer, or not a schedule.
    """
    assert recipe.optimizer is not None
    optimizer = build(recipe.optimizer, model)
    check_optimizer(recipe.optimizer, optimizer)
    split_by_layout(optimizer)
    save_by_name(optimizer, model)
    if recipe.schedule is None:
        return optimizer
    scheduler = StepSchedule(optimizer, checked_schedule(recipe.schedule, build(recipe.schedule, steps)))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class StepSchedule(torch.optim.lr_scheduler.LambdaLR):
    """A schedule whose state is only the step; the optimizer's state, saved by name, has the initial learning rates."""

    def state_dict(self) -> dict[str, Any]:
        """The step."""
        return {"step": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the step and sets the rates of that step. The optimizer must have its state already."""
        resume_schedule(self, int(state_dict["step"]))


def split_by_layout(optimizer: torch.optim.Optimizer) -> None:
    """Splits param groups so that all parameters of a group have one layout, as torch's ``foreach`` kernels require.

    The new groups keep the options of the old one, and the order. Groups of a model that is not sharded stay the same.
    """
    groups = []
    for group in optimizer.param_groups:
        parts: dict[Any, list[torch.nn.Parameter]] = {}
        for p in group["params"]:
            parts.setdefault(p.device_mesh if isinstance(p, DTensor) else None, []).append(p)
        groups += [{**group, "params": part} for part in parts.values()]
    optimizer.param_groups[:] = groups


State = dict[str, Any]


def save_by_name(optimizer: Optimizer, model: nn.Module) -> None:
    """Makes the optimizer's ``state_dict`` and ``load_state_dict`` use parameter names in place of numbers.

    State with the shape of a sharded parameter, or of one reduced along a dimension, is saved as a ``TensorShard``.
    It is loaded from a tensor, or from a ``Handle``, of which each rank reads only its slice.

    Options of param groups are restored with the state, but an option that is configured otherwise now than when the
    state was saved keeps its new value. So a resumed run applies a changed ``optimizer.lr``.
    """
    configured = {p: {k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups for p in g["params"]}
    optimizer.register_state_dict_post_hook(lambda opt, state: _named(opt, state, model, configured))
    optimizer.register_load_state_dict_pre_hook(lambda opt, state: _numbered(opt, state, model, configured))


Configured = Mapping[nn.Parameter, Mapping[str, Any]]
"""The options of each parameter's group, as the optimizer was built with them."""


def _named(optimizer: Optimizer, state: State, model: nn.Module, configured: Configured) -> State:
    name_of = {p: name for name, p in model.named_parameters()}
    names = [name_of[p] for group in optimizer.param_groups for p in group["params"]]
    built = [dict(configured[group["params"][0]]) if group["params"] else {} for group in optimizer.param_groups]
    groups = [
        {**group, "params": [names[i] for i in group["params"]], "configured": options}
        for group, options in zip(state["param_groups"], built, strict=True)
    ]
    held = optimizer_state_shards(model, optimizer)
    return {
        "state": {n: {k: _plain(v) for k, v in held[n].items()} for n in names if n in held},
        "param_groups": groups,
    }


def _plain(value: Any) -> Any:
    return value.tensor if isinstance(value, TensorShard) and value.sizes == value.global_shape else value


def _numbered(optimizer: Optimizer, state: State, model: nn.Module, configured: Configured) -> State:
    """The saved state with this optimizer's numbers, sharded as its parameters are.

    Raises:
        CheckpointError: it belongs to other parameters.
    """
    name_of = {p: name for name, p in model.named_parameters()}
    shards, reduced = parameter_shards(model), reduced_dims(optimizer)
    saved_group = {name: group for group in state["param_groups"] for name in group["params"]}
    held = {name_of[p] for group in optimizer.param_groups for p in group["params"]}
    if strays := sorted(held.symmetric_difference(saved_group)):
        raise CheckpointError(f"the optimizer's state was saved for other parameters: {first_few(strays)}")
    numbered: State = {"state": {}, "param_groups": []}
    at = 0
    for group in optimizer.param_groups:
        restored = dict(group)
        if group["params"]:
            now, restored = configured[group["params"][0]], dict(saved_group[name_of[group["params"][0]]])
            then = restored.pop("configured", {})
            restored |= {key: value for key, value in now.items() if key in then and then[key] != value}
            if "initial_lr" not in group and restored.pop("initial_lr", None) is not None:
                restored["lr"] = now["lr"]  # the schedule was removed
            elif "initial_lr" in group and (now.get("lr") != then.get("lr") or "initial_lr" not in restored):
                restored["initial_lr"] = now["lr"]  # from which a schedule computes the rates
        numbered["param_groups"].append({**restored, "params": list(range(at, at + len(group["params"])))})
        for p in group["params"]:
            if saved := state["state"].get(name_of[p]):
                shard = shards[name_of[p]]
                if isinstance(p, DTensor) or type(optimizer).__module__.startswith("torch.optim"):
                    _check_shapes({k: v for k, v in saved.items() if k not in reduced}, shard)
                numbered["state"][at] = {k: _sharded(v, p, shard, reduced.get(k)) for k, v in saved.items()}
            at += 1
    return numbered


def _check_shapes(saved: Mapping[str, Any], shard: TensorShard) -> None:
    """Rejects a tensor that has neither its parameter's shape nor one number.

    torch's optimizers keep no others, and of a parameter in shards, no rank could know which part of it to read.

    Raises:
        CheckpointError: naming it.
    """
    for key, value in saved.items():
        if isinstance(value, Tensor | Handle) and tuple(value.shape) not in ((), (1,), shard.global_shape):
            found, shape = list(value.shape), list(shard.global_shape)
            raise CheckpointError(f"the optimizer's state has {key} {found} for {shard.name} {shape}")


def first_few(names: Iterable[str], limit: int = 5) -> str:
    """The first names, and how many more there are, for an error message."""
    listed = list(names)
    return ", ".join(listed[:limit]) + (f", and {len(listed) - limit} more" if len(listed) > limit else "")


def _sharded(value: Any, p: nn.Parameter, shard: TensorShard, reduced: int | None) -> Any:
    """This rank's shard of a saved state tensor, in the layout of its parameter; any other value unchanged."""
    if not isinstance(value, Tensor | Handle):
        return value
    if reduced is not None:
        _, offset, sizes = reduced_bounds(shard, reduced)
        return _read(value, offset, sizes)
    offset, sizes = (0,) * len(value.shape), tuple(value.shape)
    if sizes == shard.global_shape:
        offset, sizes = shard.offset, shard.sizes
    elif not isinstance(p, DTensor) and sizes[:1] == shard.global_shape[:1]:  # a row per expert: this rank's experts
        offset, sizes = (shard.offset[:1] + offset[1:]), (shard.sizes[:1] + sizes[1:])
    tensor = _read(value, offset, sizes)
    if not isinstance(p, DTensor) or tuple(value.shape) != shard.global_shape:
        return tensor
    with torch.no_grad():
        return DTensor.from_local(
            tensor.to(p.device), p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
        )


def _read(value: Tensor | Handle, offset: Dims, sizes: Dims) -> Tensor:
    return value.read(offset, sizes) if isinstance(value, Handle) else value[slices_of(offset, sizes)]
