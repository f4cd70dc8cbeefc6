"""One micro-batch forward and backward, on tensors without storage: what is kept for backward, and the most at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from moekit.compat import HOST_READS, FakeTensorMode
from moekit.contracts import Batch, Model
from moekit.errors import MoekitError
from moekit.layer import MoELayer
from moekit.parallel.traffic import row_dtype
from moekit.params import build_on_meta
from moekit.planning.empty_batch import empty_batch
from moekit.planning.live_memory import Kept, Live
from moekit.planning.refill import refill
from moekit.registry import build, current
from moekit.spec.kinds import DispatcherSpec, ModelSpec, ObjectiveSpec
from moekit.spec.replacing import replace_all

REST = "the rest"
IN_PLACE = "grouped"
"""The dispatcher that is planned where a recipe's reads loads on the host, as those for CPUs do. It keeps no less."""

DTYPES: Final[Mapping[str, tuple[torch.dtype, torch.dtype | None]]] = {
    "32-true": (torch.float32, None),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "16-mixed": (torch.float32, torch.float16),
    "bf16-true": (torch.bfloat16, None),
    "64-true": (torch.float64, None),
}
"""By precision: the dtype of weights, and autocast's where there is autocast."""


@dataclass(frozen=True, kw_only=True)
class LayerUse:
    """What one mixture layer is given in a pass.

    Attributes:
        tokens: T.
        dim, out_dim: D and O.
        element, out_element: bytes of a number of the rows that are sent to experts, and of what comes back.
    """

    tokens: int
    dim: int
    out_dim: int
    element: int
    out_element: int


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What a forward and backward pass takes, beside weights and their gradients.

    Attributes:
        kept: bytes kept for backward at the end of the forward pass, by block (``REST`` for what is in none).
        peak: the most bytes that lived at once, those among them.
        copies: bytes of copies of the routed experts' weights that are kept beside, of all experts: autocast's.
        layers: what each mixture layer was given, by its name in the model.
        instead: the dispatcher that stood in for those that cannot run without numbers; empty for none.
    """

    kept: Mapping[str, int]
    peak: int
    copies: int
    layers: Mapping[str, LayerUse]
    instead: str = ""

    @property
    def activations(self) -> int:
        """Bytes kept for backward."""
        return sum(self.kept.values())


def measure(spec: ModelSpec, objective: ObjectiveSpec | None, *, batch: int, sequence: int, precision: str) -> Pass:
    """Runs a micro-batch through a model that is never allocated.

    Args:
        spec: the model.
        objective: the loss; the mean of what comes out where there is none.
        batch, sequence: B and S.
        precision: a key of ``DTYPES``.

    Raises:
        MoekitError: a part that reads numbers on the host, and so cannot run without any.
    """
    try:
        return _without_storage(spec, objective, batch, sequence, precision)
    except HOST_READS:
        pass
    grouped = current().get("dispatcher", IN_PLACE).spec
    carried = replace_all(spec, DispatcherSpec, lambda _: cast(DispatcherSpec, grouped()))
    try:
        return replace(_without_storage(carried, objective, batch, sequence, precision), instead=IN_PLACE)
    except HOST_READS as error:
        raise MoekitError(
            f"{type(spec).__name__} cannot be planned: a part of it reads numbers on the host, and a plan has none\n"
            f"  {error}\n  expected a model that runs on tensors without storage, whatever its dispatcher"
        ) from error


def _without_storage(
    spec: ModelSpec, objective: ObjectiveSpec | None, batch: int, sequence: int, precision: str
) -> Pass:
    model = build_on_meta(spec)
    loss = None if objective is None else build(objective)
    dtype, _ = DTYPES[precision]
    with FakeTensorMode():
        params = set(model.parameters())
        refill(model, lambda t: torch.empty(t.shape, dtype=dtype if t in params else t.dtype))
        return run(model, loss, empty_batch(spec, batch, sequence, dtype), precision)


def run(model: Model, objective: nn.Module | None, batch: Batch, precision: str) -> Pass:
    """Runs a micro-batch through a model, of tensors with storage or without, as training does. Leaves no gradient."""
    weights = [*model.parameters(), *model.buffers(), *_tensors(batch)]
    banks = [p for m in model.modules() if isinstance(m, MoELayer) for p in m.experts.parameters()]
    live = Live(weights, banks)
    kept = Kept(weights, live.copies)
    layers: dict[str, LayerUse] = {}
    _, narrow = DTYPES[precision]
    model.train()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_watched(model, kept, layers))
        stack.enter_context(live)
        with torch.autocast("cpu", narrow, enabled=narrow is not None, cache_enabled=False), kept.hooks():
            total = _total(model, objective, batch)
        kept.forget()
        live.skips = _is_large_gradient(model)
        total.backward()  # type: ignore[no-untyped-call]
    return Pass(kept=dict(kept.by_place), peak=live.peak, copies=kept.copied, layers=layers)


def _total(model: Model, objective: nn.Module | None, batch: Batch) -> Tensor:
    """0-d: the loss as training adds it up; nothing else of the pass outlives this."""
    output = model.on(batch)
    main = output.y.float().mean() if objective is None else objective(output, batch).total
    return sum((report.loss() for report in output.reports.values()), main)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _tensors(item)


def _is_large_gradient(model: Model) -> Callable[[Tensor], bool]:
    """Whether a tensor of a backward pass is the gradient of a bank or an embedding: those are counted by layout."""
    layers = [m for m in model.modules() if isinstance(m, MoELayer)]
    banks = {tuple(sorted(p.shape)) for layer in layers for p in layer.experts.parameters() if p.ndim > 2}
    tables = {p.shape for p in model.embeddings() if p is not None}
    return lambda tensor: tensor.shape in tables or (tensor.ndim > 2 and tuple(sorted(tensor.shape)) in banks)


@contextlib.contextmanager
def _watched(model: Model, kept: Kept, layers: dict[str, LayerUse]) -> Iterator[None]:
    """Notes in which block the pass is, what mixtures are given; and drops every gradient as soon as it is there."""
    names = {module: name for name, module in model.named_modules()}
    kept.place = REST
    handles: list[Any] = []

    def enter(module: nn.Module, args: Any) -> None:
        kept.place = names[module]

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        kept.place = REST

    def note(module: nn.Module, args: tuple[Tensor, ...], out: Any) -> None:
        x, y = args[0], out[0]
        use = LayerUse(
            tokens=x.shape[:-1].numel(),
            dim=x.shape[-1],
            out_dim=y.shape[-1],
            element=row_dtype(x).itemsize,
            out_element=y.element_size(),
        )
        layers.setdefault(names[module], use)

    for block in model.stack():
        handles += [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
    for module in model.modules():
        if isinstance(module, MoELayer):
            handles.append(module.register_forward_hook(note))
    for parameter in model.parameters():
        if parameter.requires_grad:
            handles.append(parameter.register_post_accumulate_grad_hook(_drop))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _drop(parameter: Tensor) -> None:
    parameter.grad = None
