"""The optimizer step divides gradients once, by the tokens of the whole step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from moekit.contracts import Batch, LossSum
from moekit.training.balance import BalanceStep
from moekit.training.step import MicroBatch, OptimizerStep, StepResult

RANKS = 4


def finished(tokens: list[int], averaged: int) -> tuple[float, StepResult]:
    """The gradient of one weight, 3 for each token, after a step of several micro-batches.

    Args:
        tokens: of each micro-batch.
        averaged: over how many ranks the gradient was; the others had no token.
    """
    model = nn.Linear(1, 1, bias=False)
    anything: Any = None
    step = OptimizerStep(cast(Any, model), anything, BalanceStep(model))
    for count in tokens:
        output: Any = SimpleNamespace(reports={}, of_source=())
        loss = LossSum(total=3 * count * model.weight.sum(), count=torch.tensor(count))
        micro = MicroBatch(Batch(torch.zeros(1, 1), torch.zeros(1, 1)), seed=0, progress=0.0)
        step.add(output, loss, micro).backward()  # type: ignore[no-untyped-call]
    assert model.weight.grad is not None
    model.weight.grad /= averaged
    done = step.finish(averaged, 0.0, SimpleNamespace())
    return float(model.weight.grad), done


@pytest.mark.parametrize("averaged", [1, RANKS])
@pytest.mark.parametrize("tokens", [[5, 0, 2], [1], [2, 1]])
def test_every_token_weighs_the_same_in_any_number_of_passes_and_ranks(tokens: list[int], averaged: int) -> None:
    """Also a single token, whose gradient is averaged over four ranks."""
    gradient, done = finished(tokens, averaged)
    assert gradient == pytest.approx(3) and float(done.norm) == pytest.approx(3)
    assert int(done.tokens) == sum(tokens) and done.non_finite is None and done.load is None


@pytest.mark.parametrize("averaged", [1, RANKS])
def test_a_step_without_tokens_has_zero_gradients(averaged: int) -> None:
    gradient, done = finished([0, 0], averaged)
    assert gradient == 0 and done.non_finite is None
