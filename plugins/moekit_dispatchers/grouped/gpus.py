"""What a GPU does with grouped products: whether torch has one kernel for them, and whether moekit's kernels run."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of ``F.grouped_mm``, and of moekit's kernels."""

GROUPED_MM_LIMIT = 1024
"""``F.grouped_mm`` in bf16 raises for this number of experts and more where it has a grouped kernel (sm90, sm100)."""

LEAST = (8, 0)
"""The least compute capability for which Triton compiles products in bf16."""


def grouped_is_fast(dtype: torch.dtype, capability: tuple[int, int] | None, num_experts: int) -> bool:
    """Whether ``F.grouped_mm`` is one kernel on a GPU; else it reads the ends of the groups, and runs E products.

    As in torch 2.13 (``aten/src/ATen/native/cuda/GroupedBlas.cpp``).

    Args:
        dtype: of the products.
        capability: the GPU's compute capability; None for one that is not from NVIDIA.
        num_experts: E.
    """
    has_kernel = capability is not None and capability[0] in (9, 10)
    return has_kernel and dtype == torch.bfloat16 and num_experts < GROUPED_MM_LIMIT


def why_slow(x_TD: Tensor, num_experts: int) -> str:
    """Why grouped products of such tokens are slow on a GPU, in words; empty if it has one kernel for them."""
    dtype = product_dtype(x_TD)
    if grouped_is_fast(dtype, capability_of(x_TD.device), num_experts):
        return ""
    return f"torch has no grouped product in {dtype} for {num_experts} experts on this {x_TD.device.type} device"


def product_dtype(x_ND: Tensor) -> torch.dtype:
    """The dtype of products: autocast's where it is on, as in ``F.linear``; fp64 stays fp64."""
    device = x_ND.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on and x_ND.dtype != torch.float64 else x_ND.dtype


def capability_of(device: torch.device) -> tuple[int, int] | None:
    """The compute capability of an NVIDIA GPU; None for any other device, and where no GPU is."""
    if device.type != "cuda" or torch.version.hip is not None or not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(device)
    return properties.major, properties.minor


def kernels_take(t: Tensor) -> bool:
    """Whether moekit's Triton kernels take a tensor, by its dtype and device."""
    return t.dtype in DTYPES and (capability_of(t.device) or (0, 0)) >= LEAST and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
