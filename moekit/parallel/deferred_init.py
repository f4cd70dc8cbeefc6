"""A model that is laid out before its weights are drawn: no process ever holds one whole.

Built as usual, a model in shards would first lie whole in the memory of every process. Here its matrices are built
without memory, cut up, given the memory of a rank's own pieces, and then drawn one module at a time, of a bank one
expert at a time, each rank keeping what is its own. The weights are those of ``moekit.weights``, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakTensorKeyDictionary

from moekit.compat import replace_tensors
from moekit.contracts import Init
from moekit.contracts.layer import ModuleExperts
from moekit.errors import MoekitError
from moekit.shards.shard import TensorShard, intersection, local_shard, slices_of
from moekit.weights import OwnedParameter, ParameterWriter, deferred, draw


class DeferredInit:
    """What is still to be drawn."""

    def __init__(self) -> None:
        self._asked: list[tuple[nn.Module, Init, int, ShardWriter]] = []

    def note(self, module: nn.Module, init: Init, seed: int) -> None:
        """Remembers what ``init_weights`` was asked for, the dtype, and vectors' values: a module may keep them."""
        parameters = module.named_parameters(remove_duplicate=False)
        small = {name: p.detach().clone() for name, p in parameters if not p.is_meta}
        self._asked.append((module, init, seed, ShardWriter(small, torch.get_default_dtype())))

    def covers(self, model: nn.Module) -> bool:
        """Whether all that has no memory is going to be drawn.

        A model may draw its weights in its own way, and modules that were made into a bank keep those they came with.
        """
        if any(isinstance(module, ModuleExperts) for module in model.modules()):
            return False
        drawn = {p for module, *_ in self._asked for p in module.parameters()}
        return all(p in drawn for p in model.parameters() if p.is_meta)

    def materialize(self, model: nn.Module, device_type: str) -> None:
        """Gives what has no memory some, and draws; in the dtype that was torch's default when it was put off.

        Args:
            model: cut up, and converted to its dtype.
            device_type: ``cpu`` or ``cuda``.

        Raises:
            MoekitError: a router or a bank leaves a matrix as it was built.
        """
        allocate(model, torch.device(device_type))
        for module, init, seed, hand in self._asked:
            draw(module, init, seed, hand)
        self._asked.clear()


@contextmanager
def defer_init() -> Iterator[DeferredInit]:
    """Matrices of modules that are built meanwhile have no memory, and ``init_weights`` is put off."""
    waiting = DeferredInit()
    without = WeakTensorKeyDictionary()

    def empty(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if nn.parameter.is_lazy(parameter) or parameter.ndim < 2 or parameter.is_meta:
            return None
        if parameter not in without:  # two modules may share one
            without[parameter] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        made: nn.Parameter = without[parameter]
        return made

    hook = register_module_parameter_registration_hook(empty)  # type: ignore[arg-type] # its type says None alone
    token = deferred.set(waiting.note)
    try:
        yield waiting
    finally:
        deferred.reset(token)
        hook.remove()


def allocate(model: nn.Module, device: torch.device) -> None:
    """Gives memory, of whatever content, to parameters without; the others, and buffers, stay as they are."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for own, p in module.named_parameters(recurse=False):
            if p.is_meta and not isinstance(p, DTensor):
                made.setdefault(p, nn.Parameter(torch.empty_like(p, device=device), p.requires_grad))
                setattr(module, own, made[p])
    # FSDP2 hears of it in this way alone; a DTensor stays the object that it is, so that what is tied stays tied.
    replace_tensors(model, lambda t: torch.empty_like(t, device=device) if t.is_meta else t)


class ShardWriter(ParameterWriter):
    """Draws aside, and keeps what is this rank's own.

    Args:
        small: values, by name, of the parameters that had memory when drawing was put off.
        dtype: to draw in.
    """

    def __init__(self, small: dict[str, Tensor], dtype: torch.dtype) -> None:
        self._small = small
        self._dtype = dtype

    def wants(self, owned: OwnedParameter, expert: int) -> bool:
        """Whether a row of the bank, or part of one, lies here."""
        return _common(owned, expert) is not None

    def take(self, owned: OwnedParameter, expert: int | None) -> Tensor:
        """Memory of its own; a vector with its values, a matrix with none."""
        if owned.name in self._small:
            whole = self._small[owned.name].clone()
            return whole if expert is None else whole[expert : expert + 1]
        rows = owned.parameter.shape[:1] if expert is None else (1,)
        return torch.full((*rows, *owned.parameter.shape[1:]), torch.nan, dtype=self._dtype)

    def give(self, owned: OwnedParameter, expert: int | None, drawn: Tensor) -> None:
        """Copies the piece.

        Raises:
            MoekitError: nothing was drawn into a matrix.
        """
        if drawn.isnan().any():
            raise MoekitError(
                f"{owned.name}: {type(owned.module).__name__} is built with a matrix that init_weights does not write; "
                "in shards no rank has what it was built with: draw or set every matrix in init_weights"
            )
        if common := _common(owned, expert):
            box, (start, sizes) = _box(owned), common
            with torch.no_grad():
                piece = drawn[slices_of(start, sizes, (expert or 0, *(0,) * (drawn.ndim - 1)))]
                box.tensor[slices_of(start, sizes, box.offset)].copy_(piece)


def _box(owned: OwnedParameter) -> TensorShard:
    return local_shard(owned.name, owned.parameter.detach())


def _common(owned: OwnedParameter, expert: int | None) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Offset and sizes of what is drawn and lies here; None for nothing."""
    box = _box(owned)
    if expert is None:
        return (box.offset, box.sizes) if box.tensor.numel() else None
    rest = box.global_shape[1:]
    return intersection(box.offset, box.sizes, (expert, *(0,) * len(rest)), (1, *rest))
