"""Where a step that is not finite went wrong, found by running its micro-batches again.

The first part of a model whose inputs are finite and whose output is not is the culprit. The forward passes are
repeated without gradients, under the same noise, with a hook on every module; what they find is compared over ranks,
and every rank runs as many of them, so models that exchange tokens or gather weights can be asked too. Where they are
finite, gradients are searched from the end of the model.

Nothing of this runs in a healthy step: it keeps references to the step's batches, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from moekit.contracts import Batch, Model, ModelOutput, Objective
from moekit.distributed import several_ranks
from moekit.parallel.sharding import local
from moekit.seeds import seed_all
from moekit.training.suspects import Watch, finite, unsound


class Micro(NamedTuple):
    """A micro-batch of the step at hand, and what it takes to run it again.

    Attributes:
        batch: as the model was given it.
        seed: of what the model drew.
        progress: what the objective was told.
    """

    batch: Batch
    seed: int
    progress: float


class Found(NamedTuple):
    """What one rank found; the least (or greatest) place counts.

    Attributes:
        place: in the order of the model.
        words: what it is.
    """

    place: float
    words: str


def diagnose(
    model: Model,
    objective: Objective,
    micros: Sequence[Micro],
    around: Callable[[], AbstractContextManager[object]],
    *,
    finite_loss: bool,
) -> tuple[str, bool]:
    """Which part is to blame, in words, and whether what it holds is. On every rank, with gradients still there.

    Args:
        model: whose step it was.
        objective: what it is trained for.
        micros: this rank's micro-batches of the step; as many on every rank.
        around: makes the context that training runs in (autocast).
        finite_loss: whether the step's loss, over all ranks, is finite: then its gradients are not.
    """
    for kind, held in (("weights", model.named_parameters()), ("buffers", _buffers(model))):
        if found := _agree(_unsound(model, held)):
            return f"{kind} that are not finite: {found.words}", True
    order: list[str] = []
    for number, micro in enumerate(micros, start=1):
        found, order = _forward(model, objective, micro, around)
        if found := _agree(found):
            of = f", in micro-batch {number} of {len(micros)}" if len(micros) > 1 else ""
            return f"first not finite: {found.words}{of}", False
    if not finite_loss:
        return "run again, every part of the step is finite: it does not repeat (a fault of the machine?)", False
    if found := _agree(_gradients(model, order), last=True):
        return f"the forward pass is finite, the gradients are not, backwards from: {found.words}", False
    found = _agree(_largest(model), last=True)
    of = "" if found is None else f"; the largest is that of: {found.words}"
    return f"every gradient is finite, and their norm overflows{of}", False


def _agree(found: Found | None, *, last: bool = False) -> Found | None:
    """The first place that any rank found, or the last; a collective."""
    everywhere: list[Found | None] = [found]
    if several_ranks():
        everywhere = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, found)
    known = [each for each in everywhere if each is not None]
    return (max if last else min)(known, key=lambda each: each.place) if known else None


def _unsound(model: Model, held: Iterable[tuple[str, Tensor]]) -> Found | None:
    """The first of a model's tensors that is not finite."""
    first: Found | None = None
    for place, (name, tensor) in enumerate(held):
        words = unsound(model, name, tensor)  # of every one: a sharded weight is asked by all ranks
        if words and first is None:
            first = Found(place, words)
    return first


def _buffers(model: Model) -> Iterator[tuple[str, Tensor]]:
    """What a model keeps beside its weights, such as a balancer's bias. Infinity may be meant (a mask): it passes."""
    for name, buffer in model.named_buffers():
        yield name, buffer.masked_fill(buffer.isinf(), 0)


def _forward(
    model: Model, objective: Objective, micro: Micro, around: Callable[[], AbstractContextManager[object]]
) -> tuple[Found | None, list[str]]:
    """The first part of one micro-batch that is not finite; and the modules in the order in which they ended."""
    batch = micro.batch
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), around(), Watch(model) as watch:
        seed_all(micro.seed)
        output = model.on(batch)
        total = objective(output, batch, progress=micro.progress).total
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # whoever looks at parameters next means those with the gradients
    found: Found | None = None
    if not finite([batch.inputs, batch.targets]):
        found = Found(-1, "the data: its inputs or targets are not finite")
    elif watch.found:
        found = Found(watch.place, watch.found)
    elif words := _losses(output):
        found = Found(len(watch.order), words)
    elif not finite(total):
        found = Found(len(watch.order) + 1, f"the objective ({type(objective).__name__})")
    return found, watch.order


def _losses(output: ModelOutput) -> str:
    """The first loss of a layer that is not finite."""
    for layer, report in output.reports.items():
        for name, term in report.losses.items():
            if not finite(term.weight * term.value):
                return f"the loss '{name}' of {layer}"
    return ""


def _gradients(model: Model, order: Sequence[str]) -> Found | None:
    """The last weight, in the order in which modules ended, whose gradient is not finite."""
    places = {name: place for place, name in enumerate(order)}
    last: Found | None = None
    for name, parameter in model.named_parameters():
        words = "" if parameter.grad is None else unsound(model, name, parameter.grad)
        if words and (last is None or _place(name, places) >= last.place):
            last = Found(_place(name, places), words)
    return last


def _place(name: str, places: dict[str, int]) -> float:
    """Where a weight is used: in its module, or in the nearest around it that was called as one."""
    module = name
    while module:
        module = module.rpartition(".")[0]
        if module in places:
            return places[module]
    return -1


def _largest(model: Model) -> Found | None:
    """The weight with the largest gradient."""
    grads = [(name, local(p.grad)) for name, p in model.named_parameters() if p.grad is not None]
    sizes = [(float(grad.abs().max()), name) for name, grad in grads if grad.numel()]
    size, name = max(sizes, default=(0.0, ""))
    return Found(size, f"{name}, up to {size:.1e}") if name else None
