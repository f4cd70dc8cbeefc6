"""One optimizer step: accumulate the micro-batches, scale gradients, take their norm, and handle non-finite values.

Losses are added up as sums, not means, so that every token weighs the same. They are divided once, by the tokens of the
whole step.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from moekit.compat import foreach_div, foreach_mul, foreach_norm
from moekit.contracts import Batch, LossSum, Model, ModelOutput, Objective
from moekit.errors import MoekitError
from moekit.registry import current
from moekit.shards import local, reshard, sharded_parameters
from moekit.training.balance import BalanceStep, StepLoad
from moekit.training.metrics import Meter, balance_sum, loss_sums


class MicroBatch(NamedTuple):
    """A micro-batch of the current step, and what is needed to run it again.

    Attributes:
        batch: the model's input.
        seed: of the noise in the model.
        progress: the fraction of training completed, as passed to the objective.
    """

    batch: Batch
    seed: int
    progress: float


@dataclass(frozen=True, kw_only=True)
class BrokenStep:
    """A step whose loss or gradients are not finite: what ``moekit_step_not_finite`` is called with.

    Attributes:
        model, objective: of the step; the gradients still exist.
        micro_batches: this rank's; the same number on every rank.
        autocast: makes the context of a forward pass.
        finite_loss: whether the step's loss, over all ranks, is finite: then its gradients are not.
    """

    model: Model
    objective: Objective
    micro_batches: Sequence[MicroBatch]
    autocast: Callable[[], AbstractContextManager[object]]
    finite_loss: bool


class Cause(NamedTuple):
    """What made a step not finite, in words; and whether weights or buffers are not finite, so that it lasts."""

    where: str
    lasting: bool = False


class NonFiniteStep(NamedTuple):
    """Why an optimizer step is not finite: the values of the loss and of the gradients' norm, and what caused them.

    ``scale`` is the loss scale, if fp16 gradients overflowed although the loss is finite; a smaller scale follows.
    """

    what: str
    cause: Cause = Cause("")
    scale: float | None = None


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """An optimizer step's metrics, over all its micro-batches and ranks.

    Attributes:
        sums: ``[sum, denominator]`` by name.
        tokens: 0-d, the objective's token count.
        norm: of all gradients, before clipping.
        load: by layer; None without MoE layers, and for a skipped step.
        non_finite: what was NaN or infinite, else None. Then the step has no gradients, and no balancer has moved.
    """

    sums: Mapping[str, Tensor]
    tokens: Tensor
    norm: float
    load: StepLoad | None
    non_finite: NonFiniteStep | None


class OptimizerStep:
    """Accumulates micro-batches, and completes the step just before the optimizer's."""

    def __init__(self, model: Model, objective: Objective, balance: BalanceStep) -> None:
        self.model = model
        self.objective = objective
        self.balance = balance
        self._meter = Meter()
        self._micro_batches: list[MicroBatch] = []

    def add(self, output: ModelOutput, loss: LossSum, micro: MicroBatch) -> Tensor:
        """Adds one micro-batch. Returns the 0-d sum to differentiate: the objective's, plus the layers' losses."""
        self._micro_batches.append(micro)
        self.balance.observe(output.reports)
        sums, total = loss_sums(loss), loss.total
        balance = balance_sum(output.reports, dict.fromkeys(output.of_source, loss.count), micro.batch.learnt_share())
        if balance is not None:
            sums["balance_loss"] = (balance, loss.count)
            total = total + balance
        self._meter.add(sums)
        return total

    def finish(self, averaged: int, progress: float, precision: Any) -> StepResult:
        """Divides the gradients by the step's tokens, updates the balancers, and resets. Call it on every rank.

        Args:
            averaged: the number of ranks over which gradients were averaged; 1 if they were summed.
            progress: the fraction of training completed.
            precision: the trainer's precision plugin, for more forward passes and the loss scale.
        """
        reshard(self.model)  # a callback may have run it since the last backward pass
        sums = self._meter.take()
        total, tokens = sums["objective"].unbind()
        divide(self.model.parameters(), tokens.clamp(min=1) / averaged)
        # the only wait for the device
        whole, norm = torch.stack([total, total_norm(self.model).to(total)]).tolist()
        micro_batches, self._micro_batches = self._micro_batches, []
        non_finite = None
        if not (math.isfinite(whole) and math.isfinite(norm)):
            non_finite = self._diagnose(float(total / tokens), norm, micro_batches, precision)
            reshard(self.model)
            for parameter in self.model.parameters():
                parameter.grad = None  # the optimizer then skips the parameter, its state and its weight decay
            self.balance.discard()
        load = None if non_finite else self.balance.step(progress=progress)
        return StepResult(sums=sums, tokens=tokens, norm=norm, load=load, non_finite=non_finite)

    def _diagnose(self, loss: float, norm: float, micro_batches: Sequence[MicroBatch], precision: Any) -> NonFiniteStep:
        what = f"the loss is {loss}, the norm of its gradients {norm}"
        scaler, finite = getattr(precision, "scaler", None), math.isfinite(loss)
        if scaler is not None and finite and (scale := float(scaler.get_scale())) > 1:
            return NonFiniteStep(what, scale=scale)
        broken = BrokenStep(
            model=self.model, objective=self.objective, micro_batches=micro_batches,
            autocast=precision.train_step_context, finite_loss=finite,
        )  # fmt: skip
        found = current().call("moekit_step_not_finite", {"step": broken})
        causes = [cause for _, cause in found if cause is not None]
        return NonFiniteStep(what, causes[0] if causes else Cause("no plugin says why"))


# ---- gradients -------------------------------------------------------------------------------------------------------


def local_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[Tensor]:
    """What this rank holds of each gradient that there is, sharing its memory."""
    return (local(parameter.grad) for parameter in parameters if parameter.grad is not None)


def divide(parameters: Iterable[nn.Parameter], by: Tensor) -> None:
    """Divides every gradient by a 0-d tensor, in place, in one pass. It stays on the device."""
    for (device, dtype), gradients in _by_kind(local_gradients(parameters)).items():
        wide = by.to(device, torch.promote_types(dtype, torch.float32))
        if wide.dtype == dtype:
            foreach_div(gradients, wide)
        else:  # a GPU would round the divisor to half precision
            for gradient in gradients:
                gradient.copy_(gradient.to(wide.dtype).div_(wide))


def clip(parameters: Iterable[nn.Parameter], norm: float, max_norm: float) -> None:
    """Scales all gradients, whose ``total_norm`` is ``norm``, to a norm of at most ``max_norm``, in place.

    A norm within the limit takes no pass over the gradients.
    """
    factor = max_norm / (norm + 1e-6)
    if factor < 1:
        for gradients in _by_kind(local_gradients(parameters)).values():
            foreach_mul(gradients, factor)


def clip_values(parameters: Iterable[nn.Parameter], limit: float) -> None:
    """Clamps every element of every gradient to ``[-limit, limit]``, in place."""
    for grad in local_gradients(parameters):
        grad.clamp_(-limit, limit)


def total_norm(module: nn.Module) -> Tensor:
    """0-d: the norm of all gradients of a module together; 0 without gradients. Stays on the device.

    Sharded gradients are summed over ranks; gradients that every rank holds whole count once. Norms of single gradients
    are taken in fp32 at least, and are combined in fp64 (on MPS, which has no fp64, in fp32). A collective if any
    parameter is sharded: then every rank must call it.
    """
    parameters, sharded = list(module.parameters()), sharded_parameters(module)
    device = parameters[0].device if parameters else torch.device("cpu")
    squares = _squares([p for p in parameters if p not in sharded], device)
    if sharded:
        of_shards = _squares([p for p in parameters if p in sharded], device)
        dist.all_reduce(of_shards)
        squares = squares + of_shards
    return squares.sqrt()


def _squares(parameters: list[nn.Parameter], device: torch.device) -> Tensor:
    """0-d, on ``device``: the sum of squares of this rank's part of the gradients."""
    total = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    for (_, dtype), gradients in _by_kind(local_gradients(parameters)).items():
        norms = foreach_norm(gradients, 2.0, dtype=torch.promote_types(dtype, torch.float32))
        total += torch.stack(norms).to(total.device, total.dtype).square().sum()
    return total


def _by_kind(tensors: Iterable[Tensor]) -> Mapping[tuple[torch.device, torch.dtype], list[Tensor]]:
    """The tensors that have elements, by device and dtype: torch's ``foreach`` kernels take one kind at a time."""
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        if tensor.numel():
            by_kind[tensor.device, tensor.dtype].append(tensor)
    return by_kind


# ---- steps that are not finite ---------------------------------------------------------------------------------------

REMEDIES = "what helps most often: a lower optimizer.lr, more schedule.warmup, trainer.gradient_clip_val=1.0"
MAX_IN_A_ROW = 10  # consecutive skips that end a run: bad data seldom causes so many, a broken model always does
LOG = logging.getLogger("moekit.training")


class NonFinitePolicy:
    """Stops the run at a non-finite step, or skips and counts it.

    While the loss scale of fp16 is being found, infinite gradients are normal: both policies skip such steps.

    Args:
        policy: the recipe's ``non_finite``: ``stop`` or ``skip``.

    Attributes:
        count: optimizer steps skipped since the run began, also before it was resumed.
        in_a_row: consecutive skips, overflows of the loss scale excepted. The caller sets it to 0 after a finite step.
    """

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.count = 0
        self.in_a_row = 0

    def skip(self, step: int, found: NonFiniteStep) -> None:
        """Counts and logs a skipped step (counted from 1), or stops the run.

        Raises:
            MoekitError: the policy is ``stop``; or weights or buffers are not finite; or too many steps in a row were.
        """
        if found.scale is not None:
            self.count += 1
            log_on_rank_zero(
                f"step {step} skipped: gradients overflow at a loss scale of {found.scale:g}; a smaller scale follows"
            )
            return
        report = f"step {step}: {found.what}\n  {found.cause.where}\n  {REMEDIES}\n  training stopped"
        if self.policy == "stop":
            raise MoekitError(f"{report}; no weight was changed in this step; non_finite=skip skips such steps")
        self.count, self.in_a_row = self.count + 1, self.in_a_row + 1
        if found.cause.lasting:
            raise MoekitError(f"{report}: skipping steps cannot repair weights or buffers")
        if self.in_a_row >= MAX_IN_A_ROW:
            raise MoekitError(f"{report}: {MAX_IN_A_ROW} steps in a row were skipped")
        log_on_rank_zero(f"step {step} skipped ({self.count} so far): {found.what}; {found.cause.where}")


@rank_zero_only
def log_on_rank_zero(line: str) -> None:
    """Logs a warning, once for all ranks; unlike ``print``, it does not break a progress bar."""
    LOG.warning(line)
