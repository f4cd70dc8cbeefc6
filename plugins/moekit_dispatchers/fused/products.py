"""The products of a block of rows, expert by expert: by torch, or by oneDNN.

oneDNN is another library within torch. On AMD's processors its products in fp32 take half of the time of MKL's, which
torch uses; on others they may take longer. It compiles a kernel for every number of rows, so numbers are rounded: up
where the further rows' results are thrown away, down where rows are summed, with the rest by torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moekit.compat import onednn_linear

FROM = 1 << 20
"""Multiply-adds from which a product is computed by oneDNN: below, the copy of its output costs more than it saves."""

OUTER_FROM, OUTER_ROWS = 1 << 22, 96
"""The same for products over rows, which copy an operand too; and the least rows. Measured on one thread."""

OUTER_SHARED_FROM = 1 << 25
"""The same for products that several threads share: they share the copies badly."""

UNIT = 32
"""Rows are rounded to multiples of this, and of a sixteenth to an eighth of themselves: eight numbers an octave."""


class Block(NamedTuple):
    """Rows that are computed together: all or some rows of one expert, or all rows of several experts.

    Attributes:
        experts: the experts, in order.
        sizes: rows of each.
        rows: rows in all.
        first: whether no earlier block has rows of the same expert.
    """

    experts: list[int]
    sizes: list[int]
    rows: int
    first: bool


def unit_of(rows: int) -> int:
    """What a number of rows is rounded to a multiple of."""
    return max(UNIT, 1 << max(0, rows.bit_length() - 4))


def room(rows: int) -> int:
    """Rows of a buffer for blocks of at most so many rows, with those that rounding up adds."""
    return rows + unit_of(rows)


def products(a_rX: Tensor, w_eHX: Sequence[Tensor], block: Block, out_rH: Tensor, *, onednn: bool) -> Tensor:
    """``out_rH``: each row times its own expert's weight.

    Args:
        a_rX: a buffer that begins with the block's rows; for oneDNN with ``room`` for rounding.
        w_eHX: the weight of each expert, laid out as in ``nn.Linear``.
        block: experts and their rows.
        out_rH: the output buffer.
        onednn: whether oneDNN computes.
    """
    start = 0
    for e, n in zip(block.experts, block.sizes, strict=True):
        w_HX, out_nH = w_eHX[e], out_rH.narrow(0, start, n)
        if onednn and n * w_HX.numel() >= FROM:
            unit = unit_of(n)
            a_nX = a_rX.narrow(0, start, -(-n // unit) * unit)
            out_nH.copy_(onednn_linear(a_nX, w_HX).narrow(0, 0, n))
        else:
            torch.mm(a_rX.narrow(0, start, n), w_HX.t(), out=out_nH)
        start += n
    return out_rH


def outer_products(a_rX: Tensor, b_rH: Tensor, block: Block, out_EXH: Tensor, *, onednn: bool) -> None:
    """For each expert of the block, the sum over its rows of ``a_rX`` outer ``b_rH``, written (or added) to ``out``."""
    parts = zip(block.experts, torch.split(a_rX, block.sizes), torch.split(b_rH, block.sizes), strict=True)
    enough = OUTER_FROM if torch.get_num_threads() == 1 else OUTER_SHARED_FROM
    for e, a_nX, b_nH in parts:
        n, out_XH = len(a_nX), out_EXH[e]
        if onednn and n >= OUTER_ROWS and n * out_XH.numel() >= enough:
            at = n - n % unit_of(n)
            y_HX = onednn_linear(b_nH[:at].t(), a_nX[:at].t())
            if block.first:
                out_XH.copy_(y_HX.t())
            else:
                out_XH.add_(y_HX.t())
            if at < n:
                out_XH.addmm_(a_nX[at:].t(), b_nH[at:])
        elif block.first:
            torch.mm(a_nX.t(), b_nH, out=out_XH)
        else:
            out_XH.addmm_(a_nX.t(), b_nH)
