"""A GPU that is not there: tensors that say they are on it, compute on a CPU, and count operators and reads.

Code takes its path for GPUs, and moekit's operators run their implementations. Values are right, except what moekit's
Triton kernels would write: their launches are counted only. What torch's CUDA kernels would read is in a table
(``READING``), and for ``F.grouped_mm`` follows from the compute capability.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from moekit_dispatchers.grouped import gpus, ops, rows
from moekit_dispatchers.triton import module as triton_module
from moekit_dispatchers.triton import ops as triton_ops

READING = {
    "_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "unique_consecutive", "bincount",
    "equal", "is_nonzero", "repeat_interleave",
}  # fmt: skip
"""Operators whose CUDA kernels wait for values, to know a size or to return a number."""

FREE = {
    "empty",
    "new_empty",
    "empty_like",
    "new_empty_strided",
    "empty_strided",
    "detach",
    "lift_fresh",
    "_unsafe_view",
}
"""Operators that launch nothing, besides views."""


class OnGpu(Tensor):
    """A tensor that is said to be on a GPU; its values are in ``held``, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="meta",
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 0)

    def tolist(self) -> Any:
        [gpu] = PretendedGpu.running
        gpu.read("tolist")
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of the pretended GPU")


class PretendedGpu(TorchDispatchMode):
    """Computes with tensors of a GPU of some compute capability.

    Attributes:
        operators: how many of torch's operators would have launched kernels, by name; moekit's kernels too.
        reads: for each read the line of moekit that waits for it.
    """

    running: ClassVar[list[PretendedGpu]] = []

    def __init__(self, capability: tuple[int, int]) -> None:
        super().__init__()
        self.capability = capability
        self.operators: Counter[str] = Counter()
        self.reads: list[str] = []

    def put(self, t: Tensor) -> Tensor:
        """The tensor on the GPU."""
        return OnGpu(t.detach()).requires_grad_(t.requires_grad)

    def put_module(self, module: nn.Module) -> None:
        """All parameters and buffers on the GPU, in place."""
        for part in module.modules():
            for name, p in part._parameters.items():
                if p is not None:
                    part._parameters[name] = nn.Parameter(OnGpu(p.detach()), requires_grad=p.requires_grad)
            for name, b in part._buffers.items():
                if b is not None:
                    part._buffers[name] = OnGpu(b)

    def read(self, what: str) -> None:
        """Counts a read."""
        frames = [f for f in traceback.extract_stack() if "/moekit" in f.filename and "/tests/" not in f.filename]
        where = f"{frames[-1].filename.rpartition('/')[2]}: {frames[-1].name}" if frames else "outside of moekit"
        self.reads.append(f"{where}: {what}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "moekit":
            with self:
                return OPERATORS[func._schema.name]._init_fn(*args, **kwargs)
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, OnGpu)]
        device = kwargs.get("device")
        here = device.type in ("cuda", "meta") if device is not None else bool(tensors)
        if tensors or here:
            self._count(func, name, tensors, here)
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        bare_args, bare_kwargs = tree_map(lambda t: t.held if isinstance(t, OnGpu) else t, (args, kwargs))
        out = func(*bare_args, **bare_kwargs)
        written = [i for i, a in enumerate(func._schema.arguments) if a.alias_info and a.alias_info.is_write]
        if written:
            argument = func._schema.arguments[written[0]]
            return kwargs[argument.name] if argument.name in kwargs else args[written[0]]
        return tree_map(lambda t: OnGpu(t) if isinstance(t, Tensor) and here else t, out)

    def _count(self, func: Any, name: str, tensors: list[OnGpu], here: bool) -> None:
        masks = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            t.dtype == torch.bool for t in tensors[1:]
        )
        slow = name == "_grouped_mm" and not gpus.grouped_is_fast(
            tensors[0].dtype, self.capability, tensors[-1].shape[0]
        )
        if name in READING or masks or slow or not here:
            self.read(name)
        if not func.is_view and name not in FREE:
            self.operators[name] += 1


class Kernels:
    """In the place of a module of Triton kernels: counts launches."""

    def __init__(self, gpu: PretendedGpu) -> None:
        self._gpu = gpu

    def __getattr__(self, kernel: str) -> Any:
        return Launched(self._gpu, kernel)


class Launched:
    """In the place of a Triton kernel."""

    def __init__(self, gpu: PretendedGpu, kernel: str) -> None:
        self._gpu, self._kernel = gpu, kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            self._gpu.operators[f"kernel {self._kernel}"] += 1

        return launch


OPERATORS = {
    value._qualname: value
    for module in (ops, rows, triton_ops)
    for value in vars(module).values()
    if isinstance(value, torch.library.CustomOpDef)  # type: ignore[attr-defined]
}


@contextmanager
def pretended_gpu(capability: tuple[int, int], *, kernels: bool = True) -> Iterator[PretendedGpu]:
    """A GPU for a ``with`` block.

    Args:
        capability: its compute capability.
        kernels: whether Triton is installed.
    """
    from moekit_dispatchers.triton import launch

    gpu = PretendedGpu(capability)
    with (
        patch.object(gpus, "capability_of", lambda device: capability),
        patch.object(ops, "capability_of", lambda device: capability),
        patch.object(triton_module, "capability_of", lambda device: capability),
        patch.object(gpus, "_has_triton", lambda: kernels),
        patch.object(launch, "products", Kernels(gpu)),
        patch.object(launch, "rows", Kernels(gpu)),
        patch.object(launch, "_on", lambda t: nullcontext()),
        patch.object(torch.cuda, "_lazy_init", lambda: None),
        patch.object(PretendedGpu, "running", [gpu]),
        torch.autograd.set_multithreading_enabled(False),
        gpu,
    ):
        yield gpu
