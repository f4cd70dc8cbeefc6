"""Which module made a step non-finite, found by running the step's micro-batches again.

The module to blame is the first with finite inputs and a non-finite output. The forward passes are repeated without
gradients, under the same noise, with a hook on every module. Ranks then agree on the first that any of them found.
Every rank runs the same number of passes, so that models with all-to-all or sharded weights work too. If all
passes are finite, gradients are searched from the end of the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moekit.contracts import Dispatched, Dispatcher, ExpertBank, Model, ModelOutput, Router
from moekit.contracts.layer import Groups, UniformGroups
from moekit.distributed import is_distributed
from moekit.moe_layer import MoELayer
from moekit.routing import ExpertChoice, Routing, TokenChoice
from moekit.seeds import seed_all
from moekit.shards import local, reshard
from moekit.training.optim import first_few
from moekit.training.step import BrokenStep, Cause, MicroBatch


class Found(NamedTuple):
    """What one rank found. Of all ranks' findings, the one with the lowest (or highest) place counts.

    Attributes:
        place: position in the model's order of execution.
        what: its description.
    """

    place: float
    what: str


def diagnose(step: BrokenStep) -> Cause:
    """Finds the module to blame. A collective."""
    model = step.model
    for kind, tensors in (("weights", model.named_parameters()), ("buffers", _buffers(model))):
        if found := _agree(_first_non_finite(model, tensors)):
            return Cause(f"{kind} that are not finite: {found.what}", lasting=True)
    order: list[str] = []
    for number, micro in enumerate(step.micro_batches, start=1):
        found, order = _forward(step, micro)
        if found := _agree(found):
            of = f", in micro-batch {number} of {len(step.micro_batches)}" if len(step.micro_batches) > 1 else ""
            return Cause(f"first not finite: {found.what}{of}")
    if not step.finite_loss:
        return Cause("run again, the whole step is finite: it does not repeat (a hardware fault?)")
    if found := _agree(_gradients(model, order), last=True):
        return Cause(f"the forward pass is finite, the gradients are not, backwards from: {found.what}")
    found = _agree(_largest(model), last=True)
    of = "" if found is None else f"; the largest is that of: {found.what}"
    return Cause(f"every gradient is finite, and their norm overflows{of}")


def _agree(found: Found | None, *, last: bool = False) -> Found | None:
    """The finding with the lowest place over all ranks, or with ``last`` the highest. A collective."""
    everywhere: list[Found | None] = [found]
    if is_distributed():
        everywhere = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, found)
    known = [each for each in everywhere if each is not None]
    return (max if last else min)(known, key=lambda each: each.place) if known else None


def _first_non_finite(model: Model, tensors: Iterable[tuple[str, Tensor]]) -> Found | None:
    """The first of a model's tensors that is not finite."""
    first: Found | None = None
    for place, (name, tensor) in enumerate(tensors):
        what = non_finite_part(model, name, tensor)  # without an early return: it is a collective if sharded
        if what and first is None:
            first = Found(place, what)
    return first


def _buffers(model: Model) -> Iterator[tuple[str, Tensor]]:
    """A model's buffers, such as a balancer's bias. Infinity may be intended (a mask) and is replaced by 0."""
    for name, buffer in model.named_buffers():
        yield name, buffer.masked_fill(buffer.isinf(), 0)


def _forward(step: BrokenStep, micro: MicroBatch) -> tuple[Found | None, list[str]]:
    """The first non-finite module in one micro-batch; and the names of modules in the order in which they returned."""
    model, batch = step.model, micro.batch
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), step.autocast(), Watch(model) as watch:
        seed_all(micro.seed)
        output = model.on(batch)
        total = step.objective(output, batch, progress=micro.progress).total
    reshard(model)
    found: Found | None = None
    if not finite([batch.inputs, batch.targets]):
        found = Found(-1, "the data: its inputs or targets are not finite")
    elif watch.found:
        found = Found(watch.place, watch.found)
    elif what := _non_finite_loss(output):
        found = Found(len(watch.order), what)
    elif not finite(total):
        found = Found(len(watch.order) + 1, f"the objective ({type(step.objective).__name__})")
    return found, watch.order


def _non_finite_loss(output: ModelOutput) -> str:
    """The first loss of a layer that is not finite; empty if all are."""
    for layer, report in output.reports.items():
        for name, term in report.losses.items():
            if not finite(term.weight * term.value):
                return f"the loss '{name}' of {layer}"
    return ""


def _gradients(model: Model, order: Sequence[str]) -> Found | None:
    """The last weight, in the order in which modules returned, whose gradient is not finite."""
    places = {name: place for place, name in enumerate(order)}
    last: Found | None = None
    for name, parameter in model.named_parameters():
        what = "" if parameter.grad is None else non_finite_part(model, name, parameter.grad)
        if what and (last is None or _place(name, places) >= last.place):
            last = Found(_place(name, places), what)
    return last


def _place(name: str, places: dict[str, int]) -> float:
    """The place of a weight's module, or of the nearest enclosing module that was called; -1 without one."""
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


IGNORED_FIELDS = ("losses", "own_loss", "smooth_load_E")
"""Fields of reports that are ignored during the pass: the layers' losses are checked by name after it."""


class Watch:
    """Hooks on every module of a model, for one forward pass: ``with Watch(model) as watch``.

    Routers and experts modules are watched as a whole, not the modules inside them.

    Attributes:
        order: names of modules in the order in which they returned.
        found: the first module with finite inputs and a non-finite output; empty when there is none.
        place: its position in ``order``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.order: list[str] = []
        self.place = 0
        self.found = ""
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        as_a_whole: list[str] = []
        for name, module in self.model.named_modules():
            if any(name.startswith(f"{outer}.") for outer in as_a_whole):
                continue
            self._handles.append(module.register_forward_hook(partial(self._check, name), with_kwargs=True))
            if isinstance(module, Router | ExpertBank):
                as_a_whole.append(name)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    def _check(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.order.append(name)
        if not self.found and finite([args, kwargs]) and not finite(output):
            self.place = len(self.order) - 1
            self.found = self._describe(name, module, args, output)

    def _describe(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> str:
        experts: list[int] = []
        bank = name
        if isinstance(module, ExpertBank):
            experts = _experts_by_rows(args[1], output)
        elif isinstance(module, Dispatcher):  # it may use the experts' weights without calling their module
            experts = _experts_by_pairs(args[0], args[1], args[2], output)
            layer = _layer_around(self.model, name)
            bank = f"{layer}.experts" if experts else name
        if experts:
            return f"{named_experts(self.model, bank, experts)} (inputs and weights are finite)"
        return f"{name or 'the model'} ({type(module).__name__}; inputs and weights are finite)"


def finite(value: Any) -> bool:
    """Whether every float in a tree of tensors is finite: in tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, Mapping):
        return all(finite(each) for each in value.values())
    if isinstance(value, tuple | list):
        return all(finite(each) for each in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return all(finite(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name not in IGNORED_FIELDS)
    return True


def non_finite_part(model: nn.Module, name: str, tensor: Tensor) -> str:
    """The name of a parameter or buffer if ``tensor``, its values or gradient, is not finite, else an empty string.

    Of stacked weights, it names the experts that are not finite. A collective for a sharded tensor.
    """
    owner, _, last = name.rpartition(".")
    bank = model.get_submodule(owner) if owner else model
    stacked = isinstance(bank, ExpertBank) and tensor.ndim > 0 and tensor.shape[0] == bank.num_experts > 1
    over = tuple(range(1 if stacked else 0, tensor.ndim))
    zeros = tensor.detach() * 0  # 0, or NaN where not finite; unlike ``isfinite``, sums work on sharded tensors
    zeros = zeros.sum(over) if over else zeros
    zeros = zeros.full_tensor() if hasattr(zeros, "full_tensor") else zeros
    bad = torch.isnan(zeros)
    if not bad.any():
        return ""
    whose = named_experts(model, owner, bad.nonzero().flatten().tolist()) if stacked else owner
    return f"{whose} ({last})"


def named_experts(model: nn.Module, bank: str, experts: list[int]) -> str:
    """``expert 5 of blocks.2.ffn.experts``, numbered over all ranks."""
    layer = model.get_submodule(bank.rpartition(".")[0])
    if isinstance(layer, MoELayer) and bank.endswith("experts") and layer.dispatcher.local_experts is not None:
        experts = [layer.dispatcher.local_experts[e] for e in experts]
    if getattr(model.get_submodule(bank), "num_experts", 0) <= 1:
        return bank
    return f"expert{'s' if len(experts) > 1 else ''} {first_few(map(str, experts), 3)} of {bank}"


def _experts_by_rows(groups: Groups, y_NO: Tensor) -> list[int]:
    """The experts with a non-finite output."""
    return [e for e, y_nO in enumerate(groups.split(y_NO)) if not finite(y_nO)] if groups.num_experts > 1 else []


def _experts_by_pairs(x_TD: Tensor, routing: Routing, bank: ExpertBank, output: Dispatched) -> list[int]:
    """The experts whose output for the first non-finite token is not finite; runs all experts on that token."""
    bad_T = ~torch.isfinite(output.y_TO).all(1)
    E = bank.num_experts
    if not isinstance(routing, TokenChoice | ExpertChoice) or not bad_T.any() or not 1 < E == routing.num_experts:
        return []
    token = int(bad_T.nonzero()[0])
    pairs = routing.pairs()
    chosen = pairs.expert_N[pairs.token_N == token].tolist()
    # ``forward``, not a module call: its hooks would gather weights, and other ranks may have nothing to search.
    y_EO = bank.forward(x_TD[token].expand(E, -1).contiguous(), UniformGroups(E, E))
    return [e for e in range(E) if e in chosen and not finite(y_EO[e])]


def _layer_around(model: nn.Module, name: str) -> str:
    """The name of the layer of a dispatcher, which may be nested in another dispatcher."""
    while name and not isinstance(model.get_submodule(name), MoELayer):
        name = name.rpartition(".")[0]
    return name
