"""One optimizer step of several micro-batches, on any number of ranks: what is added up, and what it comes to.

Sums, not means, are added up, so that every token weighs alike; they are divided once, by the tokens of the whole step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from moekit.contracts import LossSum, ModelOutput
from moekit.training.balance import BalanceStep, StepLoad
from moekit.training.failure import Health
from moekit.training.gradients import divide, drop, total_norm
from moekit.training.meter import Meter
from moekit.training.readings import balance_sum, sums_of


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What an optimizer step came to, over all its micro-batches and ranks.

    Attributes:
        sums: ``[sum, denominator]`` by name.
        tokens: 0-d, what the objective counted.
        norm: 0-d, of all gradients, before clipping.
        load: what the layers saw; None without any, and where the step is left out.
        sick: what was not finite, in words; then all gradients are gone, and no balancer has moved. Else empty.
    """

    sums: Mapping[str, Tensor]
    tokens: Tensor
    norm: Tensor
    load: StepLoad | None
    sick: str


class OptimizerStep:
    """Adds up micro-batches, and ends the step.

    Args:
        module: whose parameters have the gradients.
        balance: the balancers' step.
    """

    def __init__(self, module: nn.Module, balance: BalanceStep) -> None:
        self.module = module
        self.balance = balance
        self._meter = Meter()
        self._health = Health()

    def add(self, output: ModelOutput, loss: LossSum) -> Tensor:
        """Adds one micro-batch; 0-d, what to take the gradient of: the objective's sum and the layers' losses."""
        self._health.observe(output.reports)
        self.balance.observe(output.reports)
        sums, total = sums_of(loss), loss.total
        balance = balance_sum(output.reports, dict.fromkeys(output.of_source, loss.count))
        if balance is not None:
            sums["balance_loss"] = (balance, loss.count)
            total = total + balance
        self._meter.add(sums)
        return total

    def finish(self, *, averaged: int, progress: float) -> Finished:
        """Makes gradients of sums those of means, moves the balancers, and starts again at zero; on every rank.

        Args:
            averaged: over how many ranks the gradients, sums of each rank, have been averaged (not added up).
            progress: the share of the run that lies behind.
        """
        sums = self._meter.take()
        total, tokens = sums["objective"].unbind()
        divide(self.module.parameters(), (tokens / averaged).clamp(min=1))
        norm = total_norm(self.module.parameters())
        sick = self._health.take(total, norm, self.module.named_parameters())
        if sick:
            drop(self.module.parameters())
            self.balance.forget()
        load = None if sick else self.balance.step(progress=progress)
        return Finished(sums=sums, tokens=tokens, norm=norm, load=load, sick=sick)
