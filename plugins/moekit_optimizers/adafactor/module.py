"""Adafactor over parameters that are whole or sharded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from moekit.parallel.sums import PartialSum, all_reduce_sums
from moekit.shards import local
from moekit_optimizers.adafactor import Adafactor
from moekit_optimizers.decay import groups
from moekit_optimizers.layout import ParameterLayout, parameter_layouts

State = dict[str, Any]


@final
class AdafactorOptimizer(Optimizer):
    """Adafactor over the model's trainable parameters, tied ones once. Those with weight decay have their own group.

    The last two dimensions of a tensor are factored, so that stacked experts' weights have rows and columns of their
    own for each expert. The size of the weights and the clip are of the whole stack, as in Mesh TensorFlow. State by
    parameter, in its dtype: ``step``; ``row_var [..., n, 1]`` and ``col_var [..., 1, m]``; for vectors ``variance``.

    Sharded parameters get the same updates as whole ones. Ranks all-reduce squares of weights, of rows, of columns and
    of the update, and the mean of the rows, for all parameters together: at most three messages a step to each group of
    ranks. The update of a sharded parameter is computed twice rather than kept until its size is known. On a device,
    the host reads no number.

    Equations: Shazeer and Stern 2018 (arXiv 1804.04235), algorithms 4 and 5, with ``torch.optim.Adafactor``'s
    epsilon, its decay (by the rate, before the step) and its names. torch's own default of ``eps[0]``, the resolution
    of the dtype (1.2e-7 in fp32), is too large: it bounds *squared* gradients, so that a tensor whose gradients are
    below 3e-4 would take larger steps than the paper's, most of all the stacked experts with the smallest gradients.
    Reference implementation: ``naive.py``.

    Making it is collective if anything is sharded, and so is each step: every rank must take part, with gradients of
    the same parameters.

    Args:
        spec: rate, decay of the means, clip, weight decay and epsilons.
        model: its parameters are updated, except frozen ones (``requires_grad`` false). Sharded before, if at all.

    Raises:
        ValueError: the model has no trainable parameter.
    """

    reduced: ClassVar[Mapping[str, int]] = {"row_var": -1, "col_var": -2}

    def __init__(self, spec: Adafactor, model: nn.Module) -> None:
        options = {"lr": spec.lr, "beta2_decay": -spec.decay, "eps": (spec.eps[0], spec.eps[1]), "d": spec.clip}
        super().__init__(groups(model, spec.weight_decay, "Adafactor"), options)
        self._layouts = parameter_layouts(model)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; returns the loss of ``closure``, which computes gradients. Parameters without a gradient stay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scratch = Scratch()
        pending = [
            update(p, self.state[p], self._layouts[p], group, scratch)
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        while pending:
            waiting, sums = [], []
            for each in pending:
                if partial_sums := next(each, None):
                    waiting.append(each)
                    sums += partial_sums
            all_reduce_sums(sums)
            pending = waiting
        return loss


def update(
    p: nn.Parameter, state: State, layout: ParameterLayout, options: Mapping[str, Any], scratch: Scratch
) -> Iterator[list[PartialSum]]:
    """Updates one parameter. If it is sharded, pauses at each sum that must be all-reduced before the next equation.

    Args:
        p: with a gradient.
        state: the optimizer's state of it; empty before the first step.
        layout: of the parameter.
        options: of its group.
        scratch: other updates use it too, while this one is paused.

    Yields:
        This rank's sums, which the caller replaces in place by those over all ranks.
    """
    assert p.grad is not None
    w, g = local(p), local(p.grad)
    if not state:
        state |= first_state(p, g)
    state["step"] += 1
    t = float(state["step"])  # a tensor on the CPU
    rate = t ** options["beta2_decay"]  # 1 - beta2
    lr, (least, least_size) = float(options["lr"]), options["eps"]
    numbers = prod(layout.shape)

    size = sum_of_squares(w)
    squares = scratch.like(g).copy_(g).square_()
    if "variance" in state:
        variance = local(state["variance"])
        variance.lerp_(squares.to(variance.dtype), rate)
        factors = [variance.to(squares.dtype).clamp(min=least**2).rsqrt()]
        if layout.sharded_dims:
            yield [(size, layout.groups_along())]
    else:
        row, col = squares.sum(-1, keepdim=True), squares.sum(-2, keepdim=True)
        if layout.sharded_dims:
            yield [(size, layout.groups_along()), (row, layout.groups_along(-1)), (col, layout.groups_along(-2))]
        row_var, col_var = state["row_var"], state["col_var"]
        row_var.lerp_((row / layout.shape[-1]).to(row_var.dtype), rate)
        col_var.lerp_((col / layout.shape[-2]).to(col_var.dtype), rate)
        mean = row_var.sum(-2, keepdim=True, dtype=squares.dtype)
        if layout.sharded_dims:
            yield [(mean, layout.groups_along(-2))]
        mean = (mean / layout.shape[-2]).clamp(min=least)
        factors = [(row_var / mean).rsqrt(), col_var.to(mean.dtype).rsqrt()]

    step = direction(g, factors, least, scratch)
    step_size = sum_of_squares(step)
    if layout.sharded_dims:
        yield [(step_size, layout.groups_along())]
        step = direction(g, factors, least, scratch)
    length = (size / numbers).sqrt().clamp(min=least_size) * min(lr, t**-0.5)
    length /= ((step_size / numbers).sqrt() / options["d"]).clamp(min=1)
    if options["weight_decay"]:
        w.mul_(1 - lr * options["weight_decay"])
    w.addcmul_(step, length, value=-1)


def first_state(p: nn.Parameter, g: Tensor) -> State:
    """State before the first step: in a vector's own layout, else of this rank's rows and columns."""
    step = torch.tensor(0.0)
    if p.ndim < 2:
        return {"step": step, "variance": torch.zeros_like(p)}
    *stacked, n, m = g.shape
    return {"step": step, "row_var": g.new_zeros(*stacked, n, 1), "col_var": g.new_zeros(*stacked, 1, m)}


def direction(g: Tensor, factors: list[Tensor], least: float, scratch: Scratch) -> Tensor:
    """``g / sqrt(V)``, with ``V`` at least ``least`` squared; in the scratch memory.

    Args:
        g: a gradient.
        factors: their product is ``1 / sqrt(V)``: one of ``g``'s shape, or one of its rows and one of its columns.
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
    """Memory of the size of the largest local shard, reused for all: on CPUs new memory costs the most time."""

    def __init__(self) -> None:
        self._held: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def like(self, x: Tensor) -> Tensor:
        """A tensor of ``x``'s shape, in fp32 at least; its content is undefined."""
        kind = (x.device, wide(x.dtype))
        if kind not in self._held or self._held[kind].numel() < x.numel():
            self._held[kind] = x.new_empty(x.numel(), dtype=kind[1])
        return self._held[kind][: x.numel()].view(x.shape)
