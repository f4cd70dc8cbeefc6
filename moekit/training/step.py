"""One optimizer step of several micro-batches, on any number of ranks: what is added up, and what it comes to.

Sums, not means, are added up, so that every token weighs alike; they are divided once, by the tokens of the whole step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from moekit.compat import foreach_norm
from moekit.contracts import LossSum, Model, ModelOutput, Objective
from moekit.shards.shard import expert_parallel_layers, local
from moekit.training.balance import BalanceStep, StepLoad
from moekit.training.health.diagnosis import MicroBatch, diagnose
from moekit.training.health.policy import NonFiniteStep
from moekit.training.metrics import Meter, balance_sum, loss_sums


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What an optimizer step came to, over all its micro-batches and ranks.

    Attributes:
        sums: ``[sum, denominator]`` by name.
        tokens: 0-d, what the objective counted.
        norm: 0-d, of all gradients, before clipping.
        load: what the layers saw; None without any, and where the step is left out.
        sick: what was not finite; then all gradients are gone, and no balancer has moved. Else None.
    """

    sums: Mapping[str, Tensor]
    tokens: Tensor
    norm: Tensor
    load: StepLoad | None
    non_finite: NonFiniteStep | None


class Precision:
    """What a trainer's forward passes run in.

    Args:
        plugin: the trainer's precision plugin.
    """

    def __init__(self, plugin: Any) -> None:
        self._plugin = plugin

    def around(self) -> AbstractContextManager[object]:
        """The context of a forward pass (autocast)."""
        return self._plugin.train_step_context()  # type: ignore[no-any-return]

    def scale(self) -> float | None:
        """The factor on the loss that keeps fp16 gradients from vanishing; None without one. Waits for the device."""
        scaler = getattr(self._plugin, "scaler", None)
        return None if scaler is None else float(scaler.get_scale())


class OptimizerStep:
    """Adds up micro-batches, and ends the step.

    Args:
        model: whose step it is.
        objective: what it is trained for.
        balance: the balancers' step.
    """

    def __init__(self, model: Model, objective: Objective, balance: BalanceStep) -> None:
        self.model = model
        self.objective = objective
        self.balance = balance
        self._meter = Meter()
        self._micros: list[MicroBatch] = []

    def add(self, output: ModelOutput, loss: LossSum, micro: MicroBatch) -> Tensor:
        """Adds one micro-batch; 0-d, what to take the gradient of: the objective's sum and the layers' losses."""
        self._micros.append(micro)
        self.balance.observe(output.reports)
        sums, total = loss_sums(loss), loss.total
        balance = balance_sum(output.reports, dict.fromkeys(output.of_source, loss.count))
        if balance is not None:
            sums["balance_loss"] = (balance, loss.count)
            total = total + balance
        self._meter.add(sums)
        return total

    def finish(self, averaged: int, progress: float, precision: Precision) -> StepResult:
        """Makes gradients of sums those of means, moves the balancers, and starts again at zero; on every rank.

        Args:
            averaged: over how many ranks the gradients, sums of each rank, have been averaged (not added up).
            progress: the share of the run that lies behind.
            precision: what the micro-batches ran in.
        """
        sums = self._meter.take()
        total, tokens = sums["objective"].unbind()
        divide(self.model.parameters(), tokens.clamp(min=1) / averaged)
        norm = total_norm(self.model)
        micros, self._micros = self._micros, []
        non_finite = None
        if not torch.isfinite(total) & torch.isfinite(norm):  # the one wait for the device
            non_finite = self._sickness(total / tokens, norm, micros, precision)
            drop(self.model.parameters())
            self.balance.forget()
        load = None if non_finite else self.balance.step(progress=progress)
        return StepResult(sums=sums, tokens=tokens, norm=norm, load=load, non_finite=non_finite)

    def _sickness(
        self, loss: Tensor, norm: Tensor, micros: Sequence[MicroBatch], precision: Precision
    ) -> NonFiniteStep:
        what = f"the loss is {float(loss)}, the norm of its gradients {float(norm)}"
        scale = precision.scale()
        if scale is not None and scale > 1 and torch.isfinite(loss):
            return NonFiniteStep(what=what, scale=scale)
        sound = bool(torch.isfinite(loss))
        where, lasting = diagnose(self.model, self.objective, micros, precision.around, finite_loss=sound)
        return NonFiniteStep(what=what, where=where, lasting=lasting)


def divide(parameters: Iterable[nn.Parameter], by: Tensor) -> None:
    """Divides every gradient by a 0-d tensor, in place."""
    for parameter in parameters:
        if parameter.grad is not None:
            local(parameter.grad).div_(by)


def clip(parameters: Iterable[nn.Parameter], norm: Tensor, most: float) -> None:
    """Scales all gradients by what brings their norm down to ``most``, in place; not at all where it is below.

    Args:
        parameters: whose gradients.
        norm: 0-d, their ``total_norm``.
        most: the norm that is allowed.
    """
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    for parameter in parameters:
        if parameter.grad is not None:
            held = local(parameter.grad)
            held.mul_(factor.to(held.device, held.dtype))


def clip_values(parameters: Iterable[nn.Parameter], most: float) -> None:
    """Brings every number of every gradient into ``[-most, most]``, in place."""
    for parameter in parameters:
        if parameter.grad is not None:
            local(parameter.grad).clamp_(-most, most)


def drop(parameters: Iterable[nn.Parameter]) -> None:
    """Takes every gradient away: an optimizer passes such parameters over, its state and their decay included."""
    for parameter in parameters:
        parameter.grad = None


def total_norm(module: nn.Module) -> Tensor:
    """0-d: the norm of all gradients of a module together; 0 where there are none. Stays on the device.

    What is in shards is added up over all ranks, each shard being on one of them; what every rank holds whole counts
    once. Each gradient's own norm is taken in fp32 at least, and they are put together in fp64 (on MPS, which has none,
    in fp32). Collective where anything is in shards: every rank calls it.

    Args:
        module: a plain model, or one that ``shard`` has cut up.
    """
    experts = {p for layer in expert_parallel_layers(module) for p in layer.experts.parameters()}
    parameters = list(module.parameters())
    in_shards = [p for p in parameters if isinstance(p, DTensor) or p in experts]
    whole = [p for p in parameters if not (isinstance(p, DTensor) or p in experts)]
    squares = _squares(whole, parameters)
    if in_shards:
        apart = _squares(in_shards, parameters)
        dist.all_reduce(apart)
        squares = squares + apart
    return squares.sqrt()


def _squares(some: list[nn.Parameter], among: list[nn.Parameter]) -> Tensor:
    """0-d: the sum of squares of what this process holds of some gradients, on the device of the first of ``among``."""
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for p in some:
        if p.grad is not None and (held := local(p.grad)).numel():
            by_kind[held.device, held.dtype].append(held)
    device = among[0].device if among else torch.device("cpu")
    total = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    for (_, dtype), grads in by_kind.items():
        norms = foreach_norm(grads, torch.promote_types(dtype, torch.float32))
        total += torch.stack(norms).to(total.device, total.dtype).square().sum()
    return total
