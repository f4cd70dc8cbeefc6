"""Gradients over ranks are divided by the number of tokens, whether a strategy sums or averages them.

The tests compare gradients because losses hide mistakes: with gradients four times too small, the losses of three
steps of AdamW differ by 1e-4.
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
from moekit.training.step import MicroBatch, OptimizerStep


@pytest.mark.parametrize("averaged", [1, 4])
def test_averaged_and_summed_gradients_give_the_same_step(averaged: int) -> None:
    """Each rank sums over its tokens. The all-reduce sums or averages these; the step divides by all tokens."""
    model = cast(Any, nn.Linear(2, 1, bias=False))
    step = OptimizerStep(model, cast(Any, None), BalanceStep(model))
    for total, count in ((6.0, 3), (2.0, 5)):
        loss = LossSum(total=torch.tensor(total), count=torch.tensor(count))
        step.add(ModelOutput(y=torch.zeros(1)), loss, MicroBatch(Batch(torch.zeros(1), torch.zeros(1)), 0, 0.0))
    model.weight.grad = torch.tensor([[24.0, 32.0]]) / averaged
    done = step.finish(averaged, 0.0, None)
    assert model.weight.grad.tolist() == [[3.0, 4.0]]
    assert (float(done.tokens), float(done.norm)) == (8.0, 5.0)


def test_only_the_sharded_strategy_sums_gradients_over_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """DDP averages over all four ranks, and so the step must multiply by four."""
    from moekit_lightning.sharded import Sharded
    from moekit_lightning.sharded.module import ShardedStrategy

    module = LitMoE(load("jacobs1991"))
    received: list[int] = []

    class Stop(Exception):
        pass

    def finish(averaged: int, *_: object) -> None:
        received.append(averaged)
        raise Stop("finish was called")

    monkeypatch.setattr(module._step, "finish", finish)
    for strategy in (object(), ShardedStrategy(Sharded())):
        trainer = SimpleNamespace(
            strategy=strategy, world_size=4, global_step=0, max_steps=9, precision_plugin=None, current_epoch=0
        )
        monkeypatch.setattr(LitMoE, "trainer", trainer)
        with pytest.raises(Stop, match="finish was called"):
            module.on_before_optimizer_step(cast(Any, None))
    assert received == [4, 1]


def test_a_step_without_tokens_changes_nothing() -> None:
    """Ranks may have nothing but padding: 0 / 0 would skip the step as non-finite."""
    model = cast(Any, nn.Linear(2, 1, bias=False))
    step = OptimizerStep(model, cast(Any, None), BalanceStep(model))
    loss = LossSum(total=torch.tensor(0.0), count=torch.tensor(0))
    step.add(ModelOutput(y=torch.zeros(1)), loss, MicroBatch(Batch(torch.zeros(1), torch.zeros(1)), 0, 0.0))
    model.weight.grad = torch.zeros(1, 2)
    done = step.finish(1, 0.0, None)
    assert done.non_finite is None and model.weight.grad.tolist() == [[0.0, 0.0]] and float(done.norm) == 0
