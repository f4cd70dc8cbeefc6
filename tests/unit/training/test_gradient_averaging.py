"""Mistakes of training on several ranks that no other fast test noticed: each was made in moekit.

Most hide from the loss: three steps of AdamW differ by 1e-4 where gradients are four times too small. So gradients are
looked at. Traps that other tests catch have no second test here.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from moekit import Batch, load
from moekit.contracts import LossSum, ModelOutput
from moekit.training import LitMoE
from moekit.training.balance import BalanceStep
from moekit.training.health.diagnosis import MicroBatch
from moekit.training.step import OptimizerStep, Precision


@pytest.mark.parametrize("averaged", [1, 4])
def test_a_mean_over_ranks_is_made_a_sum_again(averaged: int) -> None:
    """Ranks have summed over their tokens; whether these sums were added up or averaged, a gradient is a token's."""
    model = cast(Any, nn.Linear(2, 1, bias=False))
    step = OptimizerStep(model, cast(Any, None), BalanceStep(model))
    for total, count in ((6.0, 3), (2.0, 5)):
        loss = LossSum(total=torch.tensor(total), count=torch.tensor(count))
        step.add(ModelOutput(y=torch.zeros(1)), loss, MicroBatch(Batch(torch.zeros(1), torch.zeros(1)), 0, 0.0))
    model.weight.grad = torch.tensor([[24.0, 32.0]]) / averaged
    done = step.finish(averaged, 0.0, Precision(None))
    assert model.weight.grad.tolist() == [[3.0, 4.0]]
    assert (float(done.tokens), float(done.norm)) == (8.0, 5.0)


def test_only_the_sharded_strategy_adds_gradients_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """DDP averages them over all ranks, and nobody tells."""
    from moekit.parallel.strategy import ShardedStrategy
    from moekit.spec.sharding import Sharded

    module = LitMoE(load("jacobs1991"))
    told: list[int] = []

    class Enough(Exception):
        pass

    def finish(averaged: int, *_: object) -> None:
        told.append(averaged)
        raise Enough

    monkeypatch.setattr(module._step, "finish", finish)
    for strategy in (object(), ShardedStrategy(Sharded())):
        trainer = SimpleNamespace(
            strategy=strategy, world_size=4, global_step=0, max_steps=9, precision_plugin=None, current_epoch=0
        )
        monkeypatch.setattr(LitMoE, "trainer", trainer)
        with pytest.raises(Enough):
            module.on_before_optimizer_step(cast(Any, None))
    assert told == [4, 1]


def test_a_step_without_a_token_moves_nothing_and_divides_by_one() -> None:
    """A rank, or all of them, may have padding alone: 0 / 0 would leave the step out as if it were sick."""
    model = cast(Any, nn.Linear(2, 1, bias=False))
    step = OptimizerStep(model, cast(Any, None), BalanceStep(model))
    loss = LossSum(total=torch.tensor(0.0), count=torch.tensor(0))
    step.add(ModelOutput(y=torch.zeros(1)), loss, MicroBatch(Batch(torch.zeros(1), torch.zeros(1)), 0, 0.0))
    model.weight.grad = torch.zeros(1, 2)
    done = step.finish(1, 0.0, Precision(None))
    assert done.non_finite is None and model.weight.grad.tolist() == [[0.0, 0.0]] and float(done.norm) == 0
