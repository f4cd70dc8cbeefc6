"""Memory of one micro-batch, measured on tensors without storage: what is saved for backward, and the peak."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from moekit.compat import HOST_READS, FakeTensorMode
from moekit.contracts import Batch, Model, Source
from moekit.errors import MoekitError
from moekit.moe_layer import MoELayer
from moekit.parallel.traffic import row_dtype
from moekit.params import build_on_meta
from moekit.registry import build, current
from moekit.spec.kinds import DispatcherSpec, ModelSpec, ObjectiveSpec
from moekit.spec.recipe import Start
from moekit.spec.replacing import replace_all
from moekit.training.run.start import freeze
from moekit_plan.live_memory import LiveBytes
from moekit_plan.saved_memory import SavedStorages
from moekit_plan.weight_bytes import replace_each_tensor

REST = "the rest"
SUBSTITUTE = "grouped"
"""The dispatcher planned for one that reads loads on the host, as those for CPUs do. It saves at least as much."""

DTYPES: Final[Mapping[str, tuple[torch.dtype, torch.dtype | None]]] = {
    "32-true": (torch.float32, None),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "16-mixed": (torch.float32, torch.float16),
    "bf16-true": (torch.bfloat16, None),
    "64-true": (torch.float64, None),
}
"""By precision: the dtype of weights, and the dtype of autocast, if any."""


@dataclass(frozen=True, kw_only=True)
class LayerUse:
    """The input and output of one MoE layer in a pass.

    Attributes:
        tokens: T.
        dim, out_dim: D and O.
        element_bytes, out_element_bytes: of a number in the rows sent to experts, and in the rows sent back.
    """

    tokens: int
    dim: int
    out_dim: int
    element_bytes: int
    out_element_bytes: int


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Memory of a forward and backward pass, without weights and their gradients.

    Attributes:
        saved: bytes saved for backward at the end of the forward pass, by block (``REST`` for those of no block).
        peak: the most bytes alive at once, ``saved`` included.
        copies: bytes of autocast's copies of the routed experts' weights that are saved in addition, of all experts.
        layers: input and output of each MoE layer, by its name in the model.
        substitute: the dispatcher planned for those that need real numbers; empty for none.
    """

    saved: Mapping[str, int]
    peak: int
    copies: int
    layers: Mapping[str, LayerUse]
    substitute: str = ""

    @property
    def activations(self) -> int:
        """Bytes saved for backward."""
        return sum(self.saved.values())


def model_on_meta(spec: ModelSpec, start: Start | None) -> Model:
    """The model of a spec, without memory; the weights that a run does not train are frozen.

    Raises:
        MoekitError: a tensor of 2**63 bytes or more.
        SpecError: ``start`` names a part that the model lacks, or leaves nothing to train.
    """
    model = build_on_meta(spec)
    if start is not None:
        freeze(model, start)
    return model


def measure(
    spec: ModelSpec,
    objective: ObjectiveSpec | None,
    *,
    batch: int,
    sequence: int,
    precision: str,
    start: Start | None = None,
) -> Pass:
    """Runs a micro-batch of B sequences of S tokens through a model that is never allocated.

    Without an objective, the loss is the mean of the output. ``precision`` is a key of ``DTYPES``. ``start`` says which
    weights are trained.

    Raises:
        MoekitError: a module that is not a dispatcher reads numbers on the host, so it cannot run without storage.
    """
    try:
        return _without_storage(spec, objective, start, batch, sequence, precision)
    except HOST_READS:
        pass
    grouped = current().get("dispatcher", SUBSTITUTE).spec_class
    substituted = replace_all(spec, DispatcherSpec, lambda _: cast(DispatcherSpec, grouped()))
    try:
        measured = _without_storage(substituted, objective, start, batch, sequence, precision)
    except HOST_READS as error:
        raise MoekitError(
            f"{type(spec).__name__} cannot be planned: a part of it reads numbers on the host, and a plan has none\n"
            f"  {error}\n  expected a model that runs on tensors without storage, whatever its dispatcher"
        ) from error
    return replace(measured, substitute=SUBSTITUTE)


def _without_storage(
    spec: ModelSpec, objective: ObjectiveSpec | None, start: Start | None, batch: int, sequence: int, precision: str
) -> Pass:
    model = model_on_meta(spec, start)
    loss = None if objective is None else build(objective)
    dtype, _ = DTYPES[precision]
    with FakeTensorMode():
        params = set(model.parameters())
        replace_each_tensor(model, lambda t: torch.empty(t.shape, dtype=dtype if t in params else t.dtype))
        return run(model, loss, empty_batch(spec, batch, sequence, dtype), precision)


def empty_batch(spec: ModelSpec, batch: int, sequence: int, dtype: torch.dtype = torch.float32) -> Batch:
    """A micro-batch of zeros: B sequences of S tokens, sources as long as targets; or B · S cases.

    Raises:
        MoekitError: a model that takes cases, whose spec has no widths.
    """
    if spec.takes == "cases":
        inputs, outputs = getattr(spec, "inputs", None), getattr(spec, "outputs", None)
        if not isinstance(inputs, int) or not isinstance(outputs, int):
            raise MoekitError(
                f"{type(spec).__name__} takes cases and does not say how wide they are\n"
                "  expected options 'inputs' and 'outputs' in that spec"
            )
        T = batch * sequence
        return Batch(torch.zeros(T, inputs, dtype=dtype), torch.zeros(T, outputs, dtype=dtype))
    tokens_BS = torch.zeros(batch, sequence, dtype=torch.int64)
    if spec.takes != "pairs":
        return Batch(tokens_BS, tokens_BS)
    valid_BS = torch.ones(batch, sequence, dtype=torch.bool)
    return Batch(tokens_BS, tokens_BS, valid_BS, source=Source(tokens_BS, valid_BS))


def run(model: Model, objective: nn.Module | None, batch: Batch, precision: str) -> Pass:
    """Runs a micro-batch through a model as training does, with or without storage. Leaves no gradients."""
    weights = [*model.parameters(), *model.buffers(), *_tensors(batch)]
    banks = [p for m in model.modules() if isinstance(m, MoELayer) for p in m.experts.parameters()]
    live = LiveBytes(weights, banks)
    saved = SavedStorages(weights, live.copies)
    layers: dict[str, LayerUse] = {}
    _, narrow = DTYPES[precision]
    model.train()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_watched(model, saved, layers))
        stack.enter_context(live)
        with torch.autocast("cpu", narrow, enabled=narrow is not None, cache_enabled=False), saved.hooks():
            total = _total(model, objective, batch)
        saved.tensors.clear()  # so that backward frees them as it usually does
        live.skips = _is_large_gradient(model)
        total.backward()  # type: ignore[no-untyped-call]
    return Pass(saved=dict(saved.by_place), peak=live.peak, copies=saved.copied, layers=layers)


def _total(model: Model, objective: nn.Module | None, batch: Batch) -> Tensor:
    """0-d: the total loss of training. A function of its own, so that all else of the pass is freed."""
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
    """Whether a tensor in backward is the gradient of a bank or an embedding; the plan counts those by layout."""
    layers = [m for m in model.modules() if isinstance(m, MoELayer)]
    banks = {tuple(sorted(p.shape)) for layer in layers for p in layer.experts.parameters() if p.ndim > 2}
    tables = {p.shape for p in model.embeddings() if p is not None}
    return lambda tensor: tensor.shape in tables or (tensor.ndim > 2 and tuple(sorted(tensor.shape)) in banks)


@contextlib.contextmanager
def _watched(model: Model, saved: SavedStorages, layers: dict[str, LayerUse]) -> Iterator[None]:
    """Records the current block and the MoE layers' inputs and outputs; deletes every gradient once it is complete."""
    names = {module: name for name, module in model.named_modules()}
    saved.place = REST
    handles: list[Any] = []

    def enter(module: nn.Module, args: Any) -> None:
        saved.place = names[module]

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        saved.place = REST

    def record(module: nn.Module, args: tuple[Tensor, ...], out: Any) -> None:
        x, y = args[0], out[0]
        use = LayerUse(
            tokens=x.shape[:-1].numel(),
            dim=x.shape[-1],
            out_dim=y.shape[-1],
            element_bytes=row_dtype(x).itemsize,
            out_element_bytes=y.element_size(),
        )
        layers.setdefault(names[module], use)

    for block in model.stack():
        handles += [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
    for module in model.modules():
        if isinstance(module, MoELayer):
            handles.append(module.register_forward_hook(record))
    for parameter in model.parameters():
        if parameter.requires_grad:
            handles.append(parameter.register_post_accumulate_grad_hook(_delete_gradient))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _delete_gradient(parameter: Tensor) -> None:
    parameter.grad = None
