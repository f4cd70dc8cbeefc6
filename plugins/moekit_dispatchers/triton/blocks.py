"""Block sizes of products, and the tiles of rows that follow from them.

Block sizes follow from dtype and widths by calculation; none has been timed. A block is no wider than the power of two
that holds its matrix, because the rest would be products with 0. Its sums and addresses fit into registers: no kernel
spills, compiled for compute capabilities 8.0 to 12.0 (8 bytes for fp32 of odd width on 12.0, if weights are a view
without unit stride). Its operands, in three stages, fit into the shared memory of a small GPU (96 of 99 KiB). To tune
them on a GPU, change ``blocks_of`` and ``options``, and compare before and after:
``moekit bench layer olmoe --dispatchers grouped,triton``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import knobs

HALVES = (torch.float16, torch.bfloat16)

SMALL = 32
"""The most columns in the interpreter, so that the small widths of tests need more than one block."""

FUSION: Mapping[str, Any] = {"enable_fp_fusion": True}
"""Given at every launch: newer compilers warn if it is not."""


class Blocks(NamedTuple):
    """The largest blocks of a product.

    Attributes:
        side: rows, and columns, of a block of the output.
        depth: elements of the summed dimension that are loaded at a time.
        many_warps: rows from which 8 warps compute a block; 4 compute a lower one.
    """

    side: int
    depth: int
    many_warps: int


def blocks_of(dtype: torch.dtype, *widths: int) -> Blocks:
    """The largest blocks for matrices of these widths.

    Widths that are not multiples of 16 need an address for each number, and so more registers. fp32 has no tensor cores
    unless ``torch.set_float32_matmul_precision`` allows tf32, and every thread holds what it multiplies.
    """
    odd = any(width % 16 for width in widths)
    if dtype in HALVES:
        return Blocks(side=64, depth=32, many_warps=128) if odd else Blocks(side=128, depth=64, many_warps=128)
    return Blocks(side=64, depth=16 if odd else 32, many_warps=64)


def tile_height(num_rows: int, num_experts: int, blocks: Blocks) -> int:
    """Rows of a tile: an expert's mean number of rows, from 16 (the least for a product) to the side of a block."""
    height = 16
    while height < blocks.side and height * num_experts < num_rows:
        height *= 2
    return height


def options(x_XX: Tensor, blocks: Blocks, height: int, columns: int, depth: int) -> dict[str, Any]:
    """Block sizes and arithmetic of a product; ``depth`` is the size of its sum.

    fp32 is as exact as ``torch.set_float32_matmul_precision`` says.
    """
    exact = torch.get_float32_matmul_precision() == "highest"
    return {
        **FUSION,
        "BLOCK_M": height,
        "BLOCK_N": columns,
        "BLOCK_K": block(depth, blocks.depth),
        "PRECISION": "ieee" if exact else "tf32",
        "UPCAST": bool(knobs.runtime.interpret) and x_XX.dtype == torch.bfloat16,
        "num_warps": 8 if height >= blocks.many_warps else 4,
        "num_stages": 3,
    }


def block(width: int, most: int) -> int:
    """The power of two that holds the width, from 16 (the least for a product) to ``most``."""
    return min(SMALL if knobs.runtime.interpret else most, max(16, 1 << (width - 1).bit_length()))
