"""Deferred initialisation: shard a model on the meta device, then initialise the local shards alone.

Built as usual, a model would be whole in the memory of every rank before it is sharded. Here its matrices are built on
the meta device and sharded there; then each rank allocates its shards. Each rank initialises one module after another,
stacked weights one expert after another, in a buffer of which it keeps its shard. The weights equal those of
``moekit.weights`` on an unsharded model, to the last bit.
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
from moekit.shards import intersection, local_shard, slices_of
from moekit.weights import OwnedParameter, ParameterWriter, deferred, init_weights_now


class DeferredInit:
    """The calls of ``init_weights`` that are still to be run."""

    def __init__(self) -> None:
        self._calls: list[tuple[nn.Module, Init, int, ShardWriter]] = []

    def record(self, module: nn.Module, init: Init, seed: int) -> None:
        """Records a call, torch's default dtype, and the values of vectors, which ``init_weights`` may leave as is."""
        parameters = module.named_parameters(remove_duplicate=False)
        vectors = {name: p.detach().clone() for name, p in parameters if not p.is_meta}
        self._calls.append((module, init, seed, ShardWriter(vectors, torch.get_default_dtype())))

    def covers(self, model: nn.Module) -> bool:
        """Whether the recorded calls initialise every meta parameter.

        They do not where a model initialises weights without ``init_weights``, or keeps the weights of modules that
        it was given as experts.
        """
        if any(isinstance(module, ModuleExperts) for module in model.modules()):
            return False
        covered = {p for module, *_ in self._calls for p in module.parameters()}
        return all(p in covered for p in model.parameters() if p.is_meta)

    def materialize(self, model: nn.Module, device_type: str) -> None:
        """Allocates meta parameters and runs the recorded calls, in the default dtype at the time of each call.

        Args:
            model: sharded, and converted to its dtype.
            device_type: ``cpu`` or ``cuda``.

        Raises:
            MoekitError: a router or an experts module does not initialise one of its matrices.
        """
        allocate(model, torch.device(device_type))
        for module, init, seed, writer in self._calls:
            init_weights_now(module, init, seed, writer)
        self._calls.clear()


@contextmanager
def defer_init() -> Iterator[DeferredInit]:
    """In this context, matrices of new modules are on the meta device, and calls of ``init_weights`` are recorded."""
    deferred_init = DeferredInit()
    meta_of = WeakTensorKeyDictionary()

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if nn.parameter.is_lazy(parameter) or parameter.ndim < 2 or parameter.is_meta:
            return None
        if parameter not in meta_of:  # a tied parameter is registered more than once
            meta_of[parameter] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        replacement: nn.Parameter = meta_of[parameter]
        return replacement

    hook = register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type] # its type says None alone
    token = deferred.set(deferred_init.record)
    try:
        yield deferred_init
    finally:
        deferred.reset(token)
        hook.remove()


def allocate(model: nn.Module, device: torch.device) -> None:
    """Allocates meta parameters, with undefined values; other parameters, and buffers, stay as they are."""
    allocated: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for attribute, p in module.named_parameters(recurse=False):
            if p.is_meta and not isinstance(p, DTensor):
                allocated.setdefault(p, nn.Parameter(torch.empty_like(p, device=device), p.requires_grad))
                setattr(module, attribute, allocated[p])
    # FSDP2 notices no other way to replace a DTensor. It stays the same object, so tied parameters stay tied.
    replace_tensors(model, lambda t: torch.empty_like(t, device=device) if t.is_meta else t)


class ShardWriter(ParameterWriter):
    """Initialises a buffer of the global parameter's shape and keeps this rank's shard of it.

    Args:
        vectors: values, by name, of the parameters that were not on the meta device when the call was recorded.
        dtype: of the buffers of matrices.
    """

    def __init__(self, vectors: dict[str, Tensor], dtype: torch.dtype) -> None:
        self._vectors = vectors
        self._dtype = dtype

    def needs(self, owned: OwnedParameter, expert: int) -> bool:
        """Whether this rank holds any value of the expert."""
        return _held_region(owned, expert) is not None

    def buffer(self, owned: OwnedParameter, expert: int | None) -> Tensor:
        """New memory: a vector with its recorded values, a matrix of NaN."""
        if owned.name in self._vectors:
            whole = self._vectors[owned.name].clone()
            return whole if expert is None else whole[expert : expert + 1]
        rows = owned.parameter.shape[:1] if expert is None else (1,)
        return torch.full((*rows, *owned.parameter.shape[1:]), torch.nan, dtype=self._dtype)

    def store(self, owned: OwnedParameter, expert: int | None, values: Tensor) -> None:
        """Copies this rank's region of the buffer into its shard.

        Raises:
            MoekitError: the buffer was not initialised.
        """
        if values.isnan().any():
            raise MoekitError(
                f"{owned.name}: {type(owned.module).__name__}.init_weights does not initialise this matrix; a sharded "
                "model loses the values that a matrix is built with: set every matrix in init_weights"
            )
        if region := _held_region(owned, expert):
            shard, (start, sizes) = local_shard(owned.name, owned.parameter.detach()), region
            with torch.no_grad():
                held = values[slices_of(start, sizes, (expert or 0, *(0,) * (values.ndim - 1)))]
                shard.tensor[slices_of(start, sizes, shard.offset)].copy_(held)


def _held_region(owned: OwnedParameter, expert: int | None) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The region (offset, sizes) of a parameter, or of one expert's row, that this rank holds; None if empty."""
    shard = local_shard(owned.name, owned.parameter.detach())
    if expert is None:
        return (shard.offset, shard.sizes) if shard.tensor.numel() else None
    rest = shard.global_shape[1:]
    return intersection(shard.offset, shard.sizes, (expert, *(0,) * len(rest)), (1, *rest))
