"""Where a step that is not finite went wrong, found by running its micro-batches again.

The first part of a model whose inputs are finite and whose output is not is the culprit. The forward passes are
repeated without gradients, under the same noise, with a hook on every module; what they find is compared over ranks,
and every rank runs as many of them, so models that exchange tokens or gather weights can be asked too. Where they are
finite, gradients are searched from the end of the model.

Nothing of this runs in a healthy step: it keeps references to the step's batches, and no more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.hooks import RemovableHandle

from moekit.contracts import Batch, Dispatched, Dispatcher, ExpertBank, Model, ModelOutput, Objective, Router
from moekit.contracts.layer import Groups, UniformGroups
from moekit.distributed import is_distributed
from moekit.layer import MoELayer
from moekit.routing import ExpertChoice, Routing, TokenChoice
from moekit.seeds import seed_all
from moekit.shards.shard import local


class MicroBatch(NamedTuple):
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
    micros: Sequence[MicroBatch],
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
    if is_distributed():
        everywhere = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, found)
    known = [each for each in everywhere if each is not None]
    return (max if last else min)(known, key=lambda each: each.place) if known else None


def _unsound(model: Model, held: Iterable[tuple[str, Tensor]]) -> Found | None:
    """The first of a model's tensors that is not finite."""
    first: Found | None = None
    for place, (name, tensor) in enumerate(held):
        words = non_finite_part(model, name, tensor)  # of every one: a sharded weight is asked by all ranks
        if words and first is None:
            first = Found(place, words)
    return first


def _buffers(model: Model) -> Iterator[tuple[str, Tensor]]:
    """What a model keeps beside its weights, such as a balancer's bias. Infinity may be meant (a mask): it passes."""
    for name, buffer in model.named_buffers():
        yield name, buffer.masked_fill(buffer.isinf(), 0)


def _forward(
    model: Model, objective: Objective, micro: MicroBatch, around: Callable[[], AbstractContextManager[object]]
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
        words = "" if parameter.grad is None else non_finite_part(model, name, parameter.grad)
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


INNER = ("losses", "own_loss", "smooth_load_E")
"""Fields of what a layer saw that are no part's output: what comes of them is looked at by name, after the pass."""


class Watch:
    """Hooks on every module of a model, for one forward pass: ``with Watch(model) as watch``.

    Routers and expert banks are asked as a whole, not the modules inside them.

    Attributes:
        order: names of modules in the order in which they ended.
        place: of the culprit in ``order``.
        found: the first part with finite inputs and an output that is not, in words; empty when there is none.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.order: list[str] = []
        self.place = 0
        self.found = ""
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        closed: list[str] = []
        for name, module in self.model.named_modules():
            if any(name.startswith(f"{outer}.") for outer in closed):
                continue
            self._handles.append(module.register_forward_hook(partial(self._see, name), with_kwargs=True))
            if isinstance(module, Router | ExpertBank):
                closed.append(name)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    def _see(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.order.append(name)
        if not self.found and finite([args, kwargs]) and not finite(output):
            self.place = len(self.order) - 1
            self.found = self._words(name, module, args, output)

    def _words(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> str:
        experts: list[int] = []
        bank = name
        if isinstance(module, ExpertBank):
            experts = _bad_rows(args[1], output)
        elif isinstance(module, Dispatcher):  # it may use the weights of a bank without calling it
            experts = _bad_pairs(args[0], args[1], args[2], output)
            layer = _layer_around(self.model, name)
            bank = f"{layer}.experts" if experts else name
        if experts:
            return f"{named_experts(self.model, bank, experts)} (inputs and weights are finite)"
        return f"{name or 'the model'} ({type(module).__name__}; inputs and weights are finite)"


def finite(value: Any) -> bool:
    """Whether every float in a tree of tensors is: tuples, lists, mappings, and the values that parts exchange."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, Mapping):
        return all(finite(each) for each in value.values())
    if isinstance(value, tuple | list):
        return all(finite(each) for each in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return all(finite(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name not in INNER)
    return True


def non_finite_part(model: nn.Module, name: str, tensor: Tensor) -> str:
    """A parameter's name, or those of its experts, where its values (or its gradient's) are not finite; else empty.

    A collective for a tensor that is spread over ranks.

    Args:
        model: that has it.
        name: of the parameter.
        tensor: its values or gradient, or such of its shape.
    """
    owner, _, last = name.rpartition(".")
    bank = model.get_submodule(owner) if owner else model
    stacked = isinstance(bank, ExpertBank) and tensor.ndim > 0 and tensor.shape[0] == bank.num_experts > 1
    over = tuple(range(1 if stacked else 0, tensor.ndim))
    sound = tensor.detach() * 0  # 0, or NaN; sums of it are known for tensors in shards too
    sound = sound.sum(over) if over else sound
    sound = sound.full_tensor() if hasattr(sound, "full_tensor") else sound
    bad = torch.isnan(sound)
    if not bad.any():
        return ""
    whose = named_experts(model, owner, bad.nonzero().flatten().tolist()) if stacked else owner
    return f"{whose} ({last})"


def named_experts(model: nn.Module, bank: str, experts: list[int]) -> str:
    """``expert 5 of blocks.2.ffn.experts``, numbered over all ranks."""
    layer = model.get_submodule(bank.rpartition(".")[0])
    if isinstance(layer, MoELayer) and bank.endswith("experts") and layer.dispatcher.local_experts is not None:
        experts = [layer.dispatcher.local_experts[e] for e in experts]
    shown = ", ".join(map(str, experts[:3])) + (f" and {len(experts) - 3} more" if len(experts) > 3 else "")
    held = getattr(model.get_submodule(bank), "num_experts", 0)
    return f"expert{'s' if len(experts) > 1 else ''} {shown} of {bank}" if held > 1 else bank


def _bad_rows(groups: Groups, y_NO: Tensor) -> list[int]:
    """The experts of a bank with an output that is not finite."""
    return [e for e, y_nO in enumerate(groups.split(y_NO)) if not finite(y_nO)] if groups.num_experts > 1 else []


def _bad_pairs(x_TD: Tensor, routing: Routing, bank: ExpertBank, output: Dispatched) -> list[int]:
    """The experts that answer the first token that came out not finite with what is not finite; the bank is asked."""
    bad_T = ~torch.isfinite(output.y_TO).all(1)
    E = bank.num_experts
    if not isinstance(routing, TokenChoice | ExpertChoice) or not bad_T.any() or not 1 < E == routing.num_experts:
        return []
    token = int(bad_T.nonzero()[0])
    pairs = routing.pairs()
    chosen = pairs.expert_N[pairs.token_N == token].tolist()
    # Not a call as a module: weights are at hand now, and other ranks may have nothing to look for.
    y_EO = bank.forward(x_TD[token].expand(E, -1).contiguous(), UniformGroups(E, E))
    return [e for e in range(E) if e in chosen and not finite(y_EO[e])]


def _layer_around(model: nn.Module, name: str) -> str:
    """The name of the layer that a dispatcher, itself perhaps inside another, belongs to."""
    while name and not isinstance(model.get_submodule(name), MoELayer):
        name = name.rpartition(".")[0]
    return name
