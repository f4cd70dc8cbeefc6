"""Checks of objectives, from a model's output and a batch to a sum over valid tokens or cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from moekit.contracts import LossSum, Objective
from moekit_testing.assertions import require, require_equal, require_finite
from moekit_testing.case import Case, Check, normal
from moekit_testing.fixtures.inputs import Probe, objective_inputs


def probe(case: Case) -> Probe:
    """The standard input of the common checks, and how to run a module on it."""

    def run(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        output, batch = objective_inputs(case, inputs["y"])
        loss = module(output, batch)
        return {"total": loss.total, "count": loss.count}

    if case.output is not None:
        return Probe(inputs={"y": case.output.y.detach().float()}, run=run, fullgraph=False)
    soft = "mixture" in case.spec.takes or "prediction" in case.spec.takes  # type: ignore[attr-defined]
    y = normal(6, 1) if soft else normal(2, 4, 11)
    return Probe(inputs={"y": y}, run=run, fullgraph=False)


def checks(case: Case) -> Iterator[Check]:
    """The checks of an objective."""
    yield from (check_loss_sum, check_loss_padding, check_metrics, check_objective_gradient)


def check_loss_sum(case: Case) -> None:
    """Returns a 0-d sum and the number of valid tokens or cases, so that accumulation weights all equally."""
    y = _y(case)
    valid = _valid(y)
    valid[..., -1] = False
    loss = _loss(case, y, valid)
    require(loss.total.ndim == 0, found=f"total of shape {tuple(loss.total.shape)}", expected="a 0-d tensor")
    count = int(loss.count)
    require(count == int(valid.sum()), found=f"count = {count}", expected=f"{int(valid.sum())}, the valid ones")


def check_loss_padding(case: Case) -> None:
    """Adds nothing for padding: the totals over two halves of the positions add up to the total over all."""
    y = _y(case)
    first, second = _valid(y), _valid(y)
    first[..., ::2] = False
    second[..., 1::2] = False
    whole, one, two = (_loss(case, y, valid).total for valid in (_valid(y), first, second))
    require_equal(one + two, whole, "the sum of the halves' totals", tolerance=1e-6)


def check_metrics(case: Case) -> None:
    """Returns metrics as 0-d sums with denominators, finite and detached."""
    y = _y(case).requires_grad_()
    for name, (value, count) in _loss(case, y, _valid(y)).metrics.items():
        for part, what in ((value, "sum"), (count, "denominator")):
            require(part.ndim == 0, found=f"'{name}': a {what} of shape {tuple(part.shape)}", expected="a 0-d tensor")
            require_finite(part, f"the {what} of '{name}'")
            require(not part.requires_grad, found=f"'{name}': a {what} with a gradient", expected="a detached one")


def check_objective_gradient(case: Case) -> None:
    """Has a finite, nonzero gradient with respect to valid outputs of the model, and none for padding."""
    y = _y(case).requires_grad_()
    valid = _valid(y)
    valid[..., -1] = False
    torch.autograd.backward(_loss(case, y, valid).total)
    require_finite(y.grad, "the gradient of y")
    assert y.grad is not None
    require(bool(y.grad[valid].any()), found="a gradient of 0", expected="one that trains")
    require(not bool(y.grad[~valid].any()), found="a gradient for padding", expected="0")


def _y(case: Case) -> Tensor:
    return probe(case).cast(torch.float64)["y"]


def _valid(y: Tensor) -> Tensor:
    return torch.ones(y.shape[:-1], dtype=torch.bool)


def _loss(case: Case, y: Tensor, valid: Tensor) -> LossSum:
    loss: LossSum = case.build_as(Objective)(*objective_inputs(case, y, valid=valid))
    return loss
