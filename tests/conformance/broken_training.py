"""Balancers, objectives, data, optimizers and schedules with one fault each, by the check that must catch it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from healthy import Descent, Dice, DiceData, Even, EvenLoss, Guess, GuessObjective, Level, Nudge, NudgeBias, components
from torch import Tensor, nn

from moekit import BalanceContext, Batch, Component, LossSum, LossTerm, Routing
from moekit.shards import local


class GrowsWithExperts(EvenLoss):
    def value(self, load_E: Tensor, P_E: Tensor) -> Tensor:
        return super().value(load_E, P_E) * len(load_E)


class UpsideDown(EvenLoss):
    def value(self, load_E: Tensor, P_E: Tensor) -> Tensor:
        return 2 - super().value(load_E, P_E)


class MeanOverPadding(EvenLoss):
    def mean(self, routing: Routing) -> Tensor:
        return super().mean(routing) * routing.num_valid() / len(routing.scores_TE)


class SumsNaN(EvenLoss):
    def mean(self, routing: Routing) -> Tensor:
        weight_T = 1.0 if routing.valid_T is None else routing.valid_T[:, None]
        return (routing.scores_TE * weight_T).sum(0) / routing.num_valid()


class NoTraining(EvenLoss):
    def value(self, load_E: Tensor, P_E: Tensor) -> Tensor:
        return super().value(load_E, P_E.detach())


class Halves(EvenLoss):
    def loss(self, routing: Routing, context: BalanceContext) -> LossTerm | None:
        term = super().loss(routing, context)
        assert term is not None
        return LossTerm(value=term.value.bfloat16(), weight=term.weight)


class Forgets(NudgeBias):
    persistent: ClassVar[bool] = False


class CountsSteps(NudgeBias):
    steps = 0

    def step(self, load_E: Tensor, *, progress: float = 0.0) -> None:
        super().step(load_E)
        self.steps += 1


class DividesByLoad(NudgeBias):
    def direction(self, load_E: Tensor) -> Tensor:
        return 1 / len(load_E) - load_E / load_E.sum()


class ClaimsNoBias(Nudge):
    gives_bias: ClassVar[bool] = False


class DoubleBias(NudgeBias):
    def selection_bias(self) -> Tensor | None:
        return self.bias_E.double()


class FollowsTheModel(NudgeBias):
    """A bias in the weights' dtype, as when the model is cast to bf16."""

    def __init__(self, spec: Nudge, dims: object) -> None:
        super().__init__(spec, dims)  # type: ignore[arg-type]
        self.anchor = nn.Parameter(torch.zeros(()))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FollowsTheModel:
        nn.Module._apply(self, fn, recurse)
        return self


class WrongWay(NudgeBias):
    def direction(self, load_E: Tensor) -> Tensor:
        return -super().direction(load_E)


class FloatLoads(NudgeBias):
    def direction(self, load_E: Tensor) -> Tensor:
        load_E = load_E.float()
        return (load_E.mean() - load_E).sign()


class CountsAll(GuessObjective):
    def sum_up(self, loss_BS: Tensor, valid_BS: Tensor) -> LossSum:
        out = super().sum_up(loss_BS, valid_BS)
        return LossSum(total=out.total, count=torch.tensor(valid_BS.numel()))


class Averages(GuessObjective):
    def sum_up(self, loss_BS: Tensor, valid_BS: Tensor) -> LossSum:
        out = super().sum_up(loss_BS, valid_BS)
        return LossSum(total=out.total / out.count, count=out.count)


class LiveMetric(GuessObjective):
    def sum_up(self, loss_BS: Tensor, valid_BS: Tensor) -> LossSum:
        out = super().sum_up(loss_BS, valid_BS)
        return LossSum(total=out.total, count=out.count, metrics={"loss": (out.total, out.count)})


class TrainsOnPadding(GuessObjective):
    def sum_up(self, loss_BS: Tensor, valid_BS: Tensor) -> LossSum:
        return super().sum_up(loss_BS, torch.ones_like(valid_BS))


class Copies(DiceData):
    def batch(self, tokens_BS: Tensor) -> Batch:
        return Batch(tokens_BS, tokens_BS)


class GlobalDraw(DiceData):
    def train_batch(self, generator: torch.Generator) -> Batch:
        return self.batch(torch.randint(6, (2, 5)))


class DrawsBeside(DiceData):
    def train_batch(self, generator: torch.Generator) -> Batch:
        torch.rand(1)
        return super().train_batch(generator)


class OtherEachTime(DiceData):
    def validation_batches(self) -> Iterator[Batch]:
        yield self.train_batch(torch.default_generator)


class OtherObject(DiceData):
    def fingerprint(self) -> str:
        return hex(id(self))


class CountsDraws(DiceData):
    draws = 0

    def train_batch(self, generator: torch.Generator) -> Batch:
        self.draws += 1
        return super().train_batch(generator)

    def fingerprint(self) -> str:
        return str(self.draws)


class NoFingerprint(DiceData):
    def fingerprint(self) -> str:
        return ""


def frozen_too(spec: Descent, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def ascent(spec: Descent, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, maximize=True)


class Normed(torch.optim.SGD):
    """Normalises each tensor's gradient, and so depends on the whole tensor."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad = p.grad / p.grad.norm()
        super().step()


class Misnamed(torch.optim.Adagrad):
    """Claims state that is reduced over rows, but has a number for each weight."""

    reduced: ClassVar[dict[str, int]] = {"sum": -1}


class OfThisRank(torch.optim.Optimizer):
    """Keeps state of this rank's part as a plain tensor, of which a checkpoint would save rank 0's for all."""

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            w, grad = local(p), local(p.grad)
            w.sub_(self.state[p].setdefault("sum", torch.zeros_like(w)).add_(grad), alpha=0.1)


def of_this_rank(spec: Descent, model: nn.Module) -> torch.optim.Optimizer:
    return OfThisRank([p for p in model.parameters() if p.requires_grad], {})


def normed(spec: Descent, model: nn.Module) -> torch.optim.Optimizer:
    return Normed([p for p in model.parameters() if p.requires_grad], lr=0.1)


def misnamed(spec: Descent, model: nn.Module) -> torch.optim.Optimizer:
    return Misnamed([p for p in model.parameters() if p.requires_grad], lr=0.1)


def falls_below_zero(spec: Level, total_steps: int) -> Callable[[int], float]:
    return lambda step: 1 - step / total_steps


def never_starts(spec: Level, total_steps: int) -> Callable[[int], float]:
    return lambda step: 0.0


BROKEN: dict[str, list[Component]] = {
    "check_perfect_balance": components(Even, GrowsWithExperts),
    "check_loss_sees_skew": components(Even, UpsideDown),
    "check_padding_counts_nothing": components(Even, MeanOverPadding, SumsNaN),
    "check_loss_gradient": components(Even, NoTraining),
    "check_loss_dtype": components(Even, Halves),
    "check_persistent_state": components(Nudge, Forgets, CountsSteps),
    "check_empty_step": components(Nudge, DividesByLoad),
    "check_gives_no_bias": components(ClaimsNoBias, NudgeBias),
    "check_bias_shape": components(Nudge, DoubleBias, FollowsTheModel),
    "check_bias_moves_towards_balance": components(Nudge, WrongWay),
    "check_large_loads_exact": components(Nudge, FloatLoads),
    "check_loss_sum": components(Guess, CountsAll),
    "check_loss_padding": components(Guess, Averages),
    "check_metrics": components(Guess, LiveMetric),
    "check_objective_gradient": components(Guess, TrainsOnPadding),
    "check_batches": components(Dice, Copies),
    "check_sampled_from_generator": components(Dice, GlobalDraw, DrawsBeside),
    "check_validation_order": components(Dice, OtherEachTime),
    "check_fingerprint": components(Dice, OtherObject, CountsDraws, NoFingerprint),
    "check_every_parameter_once": components(Descent, frozen_too),
    "check_optimizer_moves": components(Descent, ascent),
    "check_takes_shards": components(Descent, normed, misnamed, of_this_rank),
    "check_schedule_factors": components(Level, falls_below_zero, never_starts),
}
