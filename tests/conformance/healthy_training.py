"""The smallest healthy balancer, model, objective, data, optimizer and schedule; broken ones are these, at fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from healthy_layers import Pick, PickRouter, Tanh, TanhBank, Walk, WalkDispatcher
from torch import Tensor, nn

from moekit import (
    BalanceContext,
    Balancer,
    Batch,
    Data,
    LayerDims,
    LossSum,
    LossTerm,
    Model,
    ModelOutput,
    MoELayer,
    Objective,
    Routing,
    option,
)
from moekit.spec.kinds import BalancerSpec, DataSpec, Form, ModelSpec, ObjectiveSpec, OptimizerSpec, ScheduleSpec


@dataclass(frozen=True, kw_only=True)
class Even(BalancerSpec):
    forms: ClassVar[frozenset[Form]] = frozenset({"token_choice"})


class EvenLoss(Balancer):
    """``E sum f P`` over valid tokens."""

    def __init__(self, spec: Even, dims: LayerDims) -> None:
        super().__init__()

    def loss(self, routing: Routing, context: BalanceContext) -> LossTerm | None:
        return LossTerm(value=self.value(routing.load_E(), self.mean(routing)), weight=0.01)

    def mean(self, routing: Routing) -> Tensor:
        scores_TE = routing.scores_TE
        if routing.valid_T is not None:
            scores_TE = scores_TE.masked_fill(~routing.valid_T[:, None], 0.0)
        return scores_TE.sum(0) / routing.num_valid()

    def value(self, load_E: Tensor, P_E: Tensor) -> Tensor:
        return len(load_E) * (load_E / load_E.sum() * P_E).sum()


@dataclass(frozen=True, kw_only=True)
class Nudge(BalancerSpec):
    forms: ClassVar[frozenset[Form]] = frozenset({"token_choice"})
    gives_bias: ClassVar[bool] = True


class NudgeBias(Balancer):
    """A bias that moves by 0.01 against the load."""

    bias_E: Tensor
    persistent: ClassVar[bool] = True

    def __init__(self, spec: Nudge, dims: LayerDims) -> None:
        super().__init__()
        self.register_buffer("bias_E", torch.zeros(dims.num_experts), persistent=self.persistent)

    def selection_bias(self) -> Tensor | None:
        return self.bias_E

    def step(self, load_E: Tensor, *, progress: float = 0.0) -> None:
        self.bias_E += 0.01 * self.direction(load_E)

    def direction(self, load_E: Tensor) -> Tensor:
        return (load_E.sum() - len(load_E) * load_E).sign()


@dataclass(frozen=True, kw_only=True)
class Tiny(ModelSpec):
    vocab: int = option(11, "tokens in the vocabulary", ge=1)


class TinyModel(Model):
    """A token's embedding and the mean of those up to it, through one MoE layer."""

    def __init__(self, spec: Tiny) -> None:
        super().__init__()
        self.embed = nn.Embedding(spec.vocab, 8)
        dims = LayerDims(dim=8, num_experts=3)
        self.moe = MoELayer(
            router=PickRouter(Pick(), dims),
            experts=TanhBank(Tanh(count=3), dims),
            dispatcher=WalkDispatcher(Walk(), dims),
        )
        self.head = nn.Linear(8, spec.vocab, bias=False)

    def forward(self, inputs: Tensor, *, valid: Tensor | None = None) -> ModelOutput:
        x_BSD, report = self.moe(self.mix(self.embed(inputs)), valid=valid)
        return ModelOutput(y=self.head(x_BSD), reports={"moe": report})

    def mix(self, x_BSD: Tensor) -> Tensor:
        count_S = torch.arange(1, x_BSD.shape[1] + 1, device=x_BSD.device)
        return x_BSD + x_BSD.cumsum(1) / count_S[:, None]

    def embeddings(self) -> tuple[nn.Parameter | None, nn.Parameter | None]:
        return self.embed.weight, self.head.weight


@dataclass(frozen=True, kw_only=True)
class Guess(ObjectiveSpec):
    pass


class GuessObjective(Objective):
    def __init__(self, spec: Guess) -> None:
        super().__init__()

    def forward(self, output: ModelOutput, batch: Batch, *, progress: float = 0.0) -> LossSum:
        loss_BS = F.cross_entropy(output.y.mT, batch.targets, reduction="none")
        valid_BS = torch.ones_like(loss_BS, dtype=torch.bool) if batch.valid is None else batch.valid
        return self.sum_up(loss_BS, valid_BS)

    def sum_up(self, loss_BS: Tensor, valid_BS: Tensor) -> LossSum:
        total, count = loss_BS.where(valid_BS, 0.0).sum(), valid_BS.sum()
        return LossSum(total=total, count=count, metrics={"loss": (total.detach(), count)})


@dataclass(frozen=True, kw_only=True)
class Dice(DataSpec):
    pass


class DiceData(Data):
    def __init__(self, spec: Dice) -> None:
        self.spec = spec

    def prepare(self) -> None:
        return None

    def train_batch(self, generator: torch.Generator) -> Batch:
        return self.batch(torch.randint(6, (2, 5), generator=generator))

    def validation_batches(self) -> Iterator[Batch]:
        yield self.train_batch(torch.Generator().manual_seed(1))

    def batch(self, tokens_BS: Tensor) -> Batch:
        return Batch(tokens_BS[:, :-1], tokens_BS[:, 1:])


@dataclass(frozen=True, kw_only=True)
class Descent(OptimizerSpec):
    pass


def descent(spec: Descent, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)


@dataclass(frozen=True, kw_only=True)
class Level(ScheduleSpec):
    pass


def level(spec: Level, total_steps: int) -> Callable[[int], float]:
    return lambda step: 1.0
