"""Checks of optimizers (``target(spec, model)``) and learning-rate schedules (``target(spec, total_steps)``)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from moekit.testing.case import Case, Check, require, require_finite


def checks(case: Case) -> Iterator[Check]:
    """The checks of an optimizer or a schedule."""
    if case.kind == "optimizer":
        yield from (check_every_parameter_once, check_optimizer_moves)
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


class _Tied(nn.Module):
    """A model with a free, a tied and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.two = nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.free = nn.Parameter(torch.zeros(3))
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
