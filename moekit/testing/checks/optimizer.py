"""Checks of optimizers (``target(spec, model)``) and learning-rate schedules (``target(spec, total_steps)``)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from moekit.shards.shard import reduced_dims
from moekit.spec.kinds import OptimizerSpec
from moekit.testing.case import Case, Check, require, require_finite


def checks(case: Case) -> Iterator[Check]:
    """The checks of an optimizer or a schedule."""
    if case.kind == "optimizer":
        yield from (check_every_parameter_once, check_optimizer_moves)
        if isinstance(case.spec, OptimizerSpec) and case.spec.takes_shards:
            yield check_takes_shards
    else:
        yield check_schedule_factors


def check_every_parameter_once(case: Case) -> None:
    """Holds every trainable parameter exactly once, tied ones too, and no frozen one."""
    model = _Tied()
    held = [id(p) for group in case.component.load()(case.spec, model).param_groups for p in group["params"]]
    for name, parameter in model.named_parameters():
        wanted = int(parameter.requires_grad)
        times = held.count(id(parameter))
        require(times == wanted, found=f"'{name}' held {times} times", expected=f"{wanted}")


def check_optimizer_moves(case: Case) -> None:
    """Moves weights along a gradient, to finite values, against it."""
    model = _Tied()
    optimizer = case.component.load()(case.spec, model)
    require(isinstance(optimizer, torch.optim.Optimizer), found=type(optimizer).__name__, expected="an Optimizer")
    before = model.free.detach().clone()
    model.free.grad = torch.ones_like(model.free)
    optimizer.step()
    moved = (model.free - before).detach()
    require_finite(moved, "a step")
    require(bool((moved < 0).all()), found=f"steps {moved.tolist()} along a gradient of 1", expected="negative ones")


def check_takes_shards(case: Case) -> None:
    """Moves the rows of a matrix alike, together and apart; or says what of its state it adds up over ranks: `reduced`.

    What moves numbers by their own gradients alone is right in shards. What looks at more of a tensor must add up over
    ranks (``moekit.shards.layout``), which one process cannot show; that its state is as it says, it can.
    """
    whole, apart = _Rows(1), _Rows(2)
    together, optimizer = _moved(case, whole)
    pieces, _ = _moved(case, apart)
    if reduced := reduced_dims(optimizer):
        ((p, state),) = optimizer.state.items()
        for key, dim in reduced.items():
            shape = list(p.shape)
            shape[dim] = 1
            found = list(state[key].shape) if key in state else "no such state of a matrix"
            require(found == shape, found=f"'{key}': {found}", expected=f"{shape}, of {list(p.shape)}")
    else:
        worst = float((together - pieces).abs().max() / together.abs().max())
        require(
            worst <= 1e-9,
            found=f"rows that move otherwise apart than together, by {worst:.2g} of the largest number",
            expected="no difference, or `takes_shards = False`, or `reduced` on an optimizer that adds up over ranks",
        )


def check_schedule_factors(case: Case) -> None:
    """Gives for every step of a run, and past its end, a finite factor from 0 to 1, and more than 0 somewhere."""
    for total in (1, 2, 100):
        factor = case.component.load()(case.spec, total)
        factors = [factor(step) for step in range(total + 3)]
        bad = [(step, f) for step, f in enumerate(factors) if not (math.isfinite(f) and 0 <= f <= 1)]
        require(
            not bad,
            found=f"a factor of {bad[0][1] if bad else 0} at step {bad[0][0] if bad else 0} of {total}",
            expected="0 to 1",
        )
        require(max(factors[:total]) > 0, found=f"only zeros in {total} steps", expected="a rate that trains")


def _moved(case: Case, model: _Rows) -> tuple[Tensor, torch.optim.Optimizer]:
    """The rows after three steps, and who made them."""
    optimizer: torch.optim.Optimizer = case.component.load()(case.spec, model)
    for step in range(1, 4):
        for part, grad in zip(model.parts, _ROWS.flip(0).sin().chunk(len(model.parts)), strict=True):
            part.grad = grad * step
        optimizer.step()
    return torch.cat([part.detach() for part in model.parts]), optimizer


_ROWS = torch.linspace(0.1, 1, 24, dtype=torch.float64).square().view(6, 4)


class _Rows(nn.Module):
    """Six rows of four, in so many matrices."""

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
