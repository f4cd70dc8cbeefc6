"""Checks of optimizers: ``target(spec, model)``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import Shard, distribute_tensor

from moekit.parallel.mesh import world_mesh
from moekit.shards import local, optimizer_state_shards, reduced_dims
from moekit_testing.assertions import require, require_finite
from moekit_testing.case import Case, Check, Omitted, claimed
from moekit_testing.fixtures import runs


def checks(case: Case) -> Iterator[Check | Omitted]:
    """The checks of an optimizer."""
    yield from (check_every_parameter_once, check_optimizer_moves)
    yield from claimed(case, "takes_shards", check_takes_shards)


def check_every_parameter_once(case: Case) -> None:
    """Has every trainable parameter in its groups exactly once, even if tied, and no frozen one."""
    model = _Tied()
    held = [id(p) for group in case.component.load()(case.spec, model).param_groups for p in group["params"]]
    for name, parameter in model.named_parameters():
        times, expected = held.count(id(parameter)), int(parameter.requires_grad)
        require(times == expected, found=f"'{name}' held {times} times", expected=f"{expected}")


def check_optimizer_moves(case: Case) -> None:
    """Changes weights against their gradient, to finite values."""
    model = _Tied()
    optimizer = case.component.load()(case.spec, model)
    require(isinstance(optimizer, torch.optim.Optimizer), found=type(optimizer).__name__, expected="an Optimizer")
    before = model.free.detach().clone()
    model.free.grad = torch.ones_like(model.free)
    optimizer.step()
    moved = (model.free - before).detach()
    require_finite(moved, "a step")
    require(bool((moved < 0).all()), found=f"changes {moved.tolist()} for a gradient of 1", expected="negative ones")


def check_takes_shards(case: Case) -> None:
    """Updates sharded matrices like whole ones, or names in ``reduced`` the state that it all-reduces over ranks.

    An elementwise optimizer is correct on shards. One that uses more of a tensor must all-reduce
    (``moekit_optimizers.layout``). One process cannot test that, but it can test the shape of the state named in
    ``reduced``. All other state must be of a form that checkpoints can save in shards.
    """
    with runs.own_process_group():
        if not dist.is_initialized():
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        sharded = _Rows(1)
        sharded.parts[0] = nn.Parameter(distribute_tensor(_ROWS, world_mesh("cpu"), [Shard(0)]))
        _, optimizer = _moved(case, sharded)
        optimizer_state_shards(sharded, optimizer)
    whole, split = _Rows(1), _Rows(2)
    together, optimizer = _moved(case, whole)
    shards, _ = _moved(case, split)
    if reduced := reduced_dims(optimizer):
        ((p, state),) = optimizer.state.items()
        for key, dim in reduced.items():
            shape = list(p.shape)
            shape[dim] = 1
            found = list(state[key].shape) if key in state else "no such state of a matrix"
            require(found == shape, found=f"'{key}': {found}", expected=f"{shape}, of {list(p.shape)}")
    else:
        worst = float((together - shards).abs().max() / together.abs().max())
        require(
            worst <= 1e-9,
            found=f"rows that change differently in shards than as one matrix, by {worst:.2g} relative",
            expected="no difference, or `takes_shards = False`, or `reduced` on an optimizer that all-reduces",
        )


def _moved(case: Case, model: _Rows) -> tuple[Tensor, torch.optim.Optimizer]:
    """The rows after three steps, and the optimizer."""
    optimizer: torch.optim.Optimizer = case.component.load()(case.spec, model)
    for step in range(1, 4):
        for part, grad in zip(model.parts, _ROWS.flip(0).sin().chunk(len(model.parts)), strict=True):
            part.grad = torch.zeros_like(part)
            local(part.grad).copy_(grad * step)
        optimizer.step()
    return torch.cat([part.detach() for part in model.parts]), optimizer


_ROWS = torch.linspace(0.1, 1, 24, dtype=torch.float64).square().view(6, 4)


class _Rows(nn.Module):
    """Six rows of four numbers, split over a number of matrices."""

    def __init__(self, matrices: int) -> None:
        super().__init__()
        self.parts = nn.ParameterList(part.clone() for part in _ROWS.chunk(matrices))


class _Tied(nn.Module):
    """A model with a free, a tied and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.two = nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.free = nn.Parameter(torch.zeros(3))
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
