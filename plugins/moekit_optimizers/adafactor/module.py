"""Adafactor over parameters that lie whole or in shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from moekit.shards.layout import ParameterLayout, PartialSum, all_reduce_sums, parameter_layouts
from moekit.shards.shard import local
from moekit_optimizers.adafactor import Adafactor
from moekit_optimizers.decay import groups

State = dict[str, Any]


@final
class AdafactorOptimizer(Optimizer):
    """Adafactor over the model's trainable parameters; a tied parameter is there once. What decays has its own group.

    The last two dimensions of a tensor are factored, so weights stacked over experts have rows and columns of their
    own for each expert; the weights' size and the clip are taken over the whole stack, as Mesh TensorFlow does. State
    by parameter, of its dtype: ``step``; ``row_var [..., n, 1]`` and ``col_var [..., 1, m]``; for vectors ``variance``.

    What is in shards moves as it would whole. Ranks add up squares of weights, of rows, of columns and of the update,
    and the mean of the rows, of all parameters together: at most three messages a step to each group of ranks. The
    update of a parameter in shards is computed twice rather than kept until its size is known. On a device, no number
    is read on the host.

    Equations: Shazeer and Stern 2018 (arXiv 1804.04235), algorithms 4 and 5, with ``torch.optim.Adafactor``'s
    epsilon, its decay (by the rate, before the step) and its names. torch's own default of ``eps[0]``, the resolution
    of the dtype (1.2e-7 in fp32), is no small number: it bounds *squared* gradients, so that a tensor whose gradients
    are below 3e-4 would take larger steps than the paper's, and among stacked experts those with the smallest
    gradients most of all. Oracle: ``naive.py``.

    Collective where anything is in shards, as is each step: every rank makes it, with gradients of the same parameters.

    Args:
        spec: rate, decay of the means, clip, weight decay and epsilons.
        model: its parameters are moved; frozen ones (``requires_grad`` false) are left out. Cut up already, if at all.

    Raises:
        ValueError: the model has no trainable parameter.
    """

    reduced: ClassVar[Mapping[str, int]] = {"row_var": -1, "col_var": -2}

    def __init__(self, spec: Adafactor, model: nn.Module) -> None:
        options = {"lr": spec.lr, "beta2_decay": -spec.decay, "eps": (spec.eps[0], spec.eps[1]), "d": spec.clip}
        super().__init__(groups(model, spec.weight_decay, "Adafactor"), options)
        self._lies = parameter_layouts(model)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step. Parameters without a gradient stay.

        Args:
            closure: computes gradients, and returns the loss.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scratch = Scratch()
        moving = [
            moved(p, self.state[p], self._lies[p], group, scratch)
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        while moving:
            waiting, sums = [], []
            for each in moving:
                if asked := next(each, None):
                    waiting.append(each)
                    sums += asked
            all_reduce_sums(sums)
            moving = waiting
        return loss


def moved(
    p: nn.Parameter, state: State, lies: ParameterLayout, options: Mapping[str, Any], scratch: Scratch
) -> Iterator[list[PartialSum]]:
    """Moves one parameter. Where it is in shards, stops whenever sums must be added up over ranks before it can go on.

    Args:
        p: with a gradient.
        state: the optimizer's of it; empty before the first step.
        lies: how it lies over ranks.
        options: of its group.
        scratch: others use it too, while this one is stopped.

    Yields:
        What this rank has summed; it is changed in place to what all ranks have.
    """
    assert p.grad is not None
    w, g = local(p), local(p.grad)
    if not state:
        state |= first_state(p, g)
    state["step"] += 1
    t = float(state["step"])  # a tensor on the CPU
    rate = t ** options["beta2_decay"]  # 1 - beta2
    lr, (least, least_size) = float(options["lr"]), options["eps"]
    numbers = prod(lies.shape)

    size = sum_of_squares(w)
    squares = scratch.like(g).copy_(g).square_()
    if "variance" in state:
        variance = local(state["variance"])
        variance.lerp_(squares.to(variance.dtype), rate)
        factors = [variance.to(squares.dtype).clamp(min=least**2).rsqrt()]
        if lies.sharded_dims:
            yield [(size, lies.groups_along())]
    else:
        row, col = squares.sum(-1, keepdim=True), squares.sum(-2, keepdim=True)
        if lies.sharded_dims:
            yield [(size, lies.groups_along()), (row, lies.groups_along(-1)), (col, lies.groups_along(-2))]
        row_var, col_var = state["row_var"], state["col_var"]
        row_var.lerp_((row / lies.shape[-1]).to(row_var.dtype), rate)
        col_var.lerp_((col / lies.shape[-2]).to(col_var.dtype), rate)
        mean = row_var.sum(-2, keepdim=True, dtype=squares.dtype)
        if lies.sharded_dims:
            yield [(mean, lies.groups_along(-2))]
        mean = (mean / lies.shape[-2]).clamp(min=least)
        factors = [(row_var / mean).rsqrt(), col_var.to(mean.dtype).rsqrt()]

    update = direction(g, factors, least, scratch)
    update_size = sum_of_squares(update)
    if lies.sharded_dims:
        yield [(update_size, lies.groups_along())]
        update = direction(g, factors, least, scratch)
    length = (size / numbers).sqrt().clamp(min=least_size) * min(lr, t**-0.5)
    length /= ((update_size / numbers).sqrt() / options["d"]).clamp(min=1)
    if options["weight_decay"]:
        w.mul_(1 - lr * options["weight_decay"])
    w.addcmul_(update, length, value=-1)


def first_state(p: nn.Parameter, g: Tensor) -> State:
    """State before the first step: of a vector laid out as it is, of anything else this rank's rows and columns."""
    step = torch.tensor(0.0)
    if p.ndim < 2:
        return {"step": step, "variance": torch.zeros_like(p)}
    *stacked, n, m = g.shape
    return {"step": step, "row_var": g.new_zeros(*stacked, n, 1), "col_var": g.new_zeros(*stacked, 1, m)}


def direction(g: Tensor, factors: list[Tensor], least: float, scratch: Scratch) -> Tensor:
    """``g / sqrt(V)``, with ``V`` at least ``least`` squared; in the scratch.

    Args:
        g: a gradient.
        factors: whose product is ``1 / sqrt(V)``: one of ``g``'s shape, or one of its rows and one of its columns.
        least: the first epsilon.
        scratch: is overwritten.
    """
    out = scratch.like(g)
    if len(factors) == 1:
        return torch.mul(factors[0], g, out=out)
    row, col = factors
    return torch.mul(row, col, out=out).clamp_(max=1 / least).mul_(g)


def sum_of_squares(x: Tensor) -> Tensor:
    """0-d, in fp32 at least."""
    norm: Tensor = torch.linalg.vector_norm(x, dtype=wide(x.dtype))
    return norm.square_()


def wide(dtype: torch.dtype) -> torch.dtype:
    """fp32 at least: sums are taken in it."""
    return torch.promote_types(dtype, torch.float32)


class Scratch:
    """Memory as large as the largest parameter's part, used for one after the other: on CPUs new memory costs most."""

    def __init__(self) -> None:
        self._held: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def like(self, x: Tensor) -> Tensor:
        """Of a tensor's shape, in fp32 at least; of whatever content."""
        kind = (x.device, wide(x.dtype))
        if kind not in self._held or self._held[kind].numel() < x.numel():
            self._held[kind] = x.new_empty(x.numel(), dtype=kind[1])
        return self._held[kind][: x.numel()].view(x.shape)
